"""Objectives on lists: whole rankings, distributions over a prompt's responses, and the best of them.

All look at every response to a prompt with a known score; LiPO (Liu et al., arXiv 2402.01878) compares
several of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.objectives.base import Needs, Objective, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.offsets import gap
from pl_prefopt.objectives.pair_weights import SwapGain
from pl_prefopt.objectives.proposals import Proposal
from pl_prefopt.objectives.scores import LogRatio, MeanLogProb
from pl_prefopt.objectives.sft import SFT
from pl_prefopt.objectives.structures import PlackettLuce, SumOfPairs
from pl_prefopt.objectives.terms import NegativeLogLikelihood
from pl_prefopt.objectives.win_rates import BRADLEY_TERRY, WinRates
from pl_prefopt.pairing import ALL_PAIRS, best, known, rankable, worst
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/lists.md"


class PRO(ReferenceFreeObjective):
    """Preference ranking optimisation: Σ_k −log[e^(s_k T_kk) / (e^(s_k T_kk) + Σ_i e^(s_i T_ki))] + SFT.

    s = ℓ̄, the log-prob per token; k runs over the responses, i over those with lower scores; T_ki = r_k − r_i
    is the gap of their scores, and T_kk the largest of k's. The SFT term is −λ(n − 1)² log π(y_best|x), a sum
    over tokens, for n responses with known scores.

    Song et al., arXiv 2306.17492; formula and λ from the authors' code. The paper prints 1/T and a minimum.
    In rows of bare labels, such as chosen and rejected, T is 1. Responses that tie are not compared; in the
    authors' code one of them adds a constant 1 to the denominator of the other, whichever comes first. Best
    responses that tie are averaged in the SFT term.

    Args:
        sft_weight: λ ≥ 0; 0.05 in the authors' code.

    Raises:
        ConfigError: if ``sft_weight`` is negative.

    Examples:
        Two responses with a gap of 1, and no SFT term: −log σ(s_w − s_l), here at −1 and −3.

        >>> from pl_prefopt.types import ResponseLogProbs
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=torch.tensor([[-4.0, -12.0]]), length=torch.tensor([[4, 4]])),
        ...     references=torch.zeros(0, 1, 2),
        ...     scores=torch.tensor([[5.0, 4.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([True]),
        ... )
        >>> PRO(sft_weight=0.0)(batch).loss, PRO(sft_weight=0.05)(batch).loss
        (tensor([0.1269]), tensor([0.3269]))
    """

    data = ("lists", "pairs")
    use_when = "Scores say by how much responses differ, and there is no memory for a reference."
    stats = (NegativeLogLikelihood.info,)

    def __init__(self, *, sft_weight: float = 0.05) -> None:
        super().__init__()
        self.sft_weight = non_negative("sft_weight", sft_weight)

    @property
    def needs(self) -> Needs:
        """Two responses."""
        return Needs(min_responses=2)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and the rewards ℓ̄."""
        pairs = ALL_PAIRS(batch.scores, batch.present)
        counted = pairs.any(dim=-1).any(dim=-1)
        sums = torch.where(batch.present, batch.policy.sum, 0.0)
        likelihood = sums / batch.policy.length.clamp(min=1)
        gaps = torch.where(batch.graded.view(-1, 1, 1), gap(batch.scores), 1.0)
        ranking = functional.pro(likelihood, torch.where(pairs, gaps, 0.0), pairs)
        others = known(batch.scores, batch.present).sum(dim=-1) - 1
        chosen = _mean_over(best(batch.scores, batch.present), sums)
        nll = torch.where(counted, -self.sft_weight * (others.square() * chosen), 0.0)
        return Outcome(
            loss=ranking + nll,
            counted=counted,
            reward=likelihood.detach(),
            stats={"nll": nll.detach().sum() / counted.sum().clamp(min=1)},
        )


class PlackettLuceDPO(Compose, ReferenceObjective):
    """DPO over rankings: −Σ_k log[exp r_k / (exp r_k + Σ_{i below k} exp r_i)], r = β log(π_θ / π_ref).

    Rafailov et al., arXiv 2305.18290, appendix A.3. With two responses it is DPO. Responses that tie are
    not compared with each other.

    Args:
        beta: β > 0, the strength of the KL penalty; the paper gives none for rankings, 0.1 is that of DPO.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        An untrained policy gives all 3! orders the same probability:

        >>> from pl_prefopt.types import ResponseLogProbs
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=torch.full((1, 3), -8.0), length=torch.full((1, 3), 4)),
        ...     references=torch.full((1, 1, 3), -8.0),
        ...     scores=torch.tensor([[5.0, 4.0, 1.0]]),
        ...     present=torch.ones(1, 3, dtype=torch.bool),
        ...     graded=torch.tensor([True]),
        ... )
        >>> PlackettLuceDPO()(batch).loss.exp()
        tensor([6.])
    """

    data = ("lists", "pairs")
    use_when = "Lists are fully ranked, and only the order is to be trusted."

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__(score=LogRatio(beta), structure=PlackettLuce())

    beta = property(lambda self: self.score.beta)


class PlackettLuceRanking(Compose, ReferenceFreeObjective):
    """Plackett-Luce without a reference: −Σ_k log[exp r_k / (exp r_k + Σ_{i below k} exp r_i)], r = βℓ̄.

    ℓ̄ is the log-prob per token. It is PRO with all temperatures 1 and no SFT term (Song et al., arXiv
    2306.17492); with two responses it is SimPO without its margin. Responses that tie are not compared.

    Args:
        beta: β > 0, the scale of the log-prob per token; 1 is PRO's.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        Responses of four tokens, at −1 and −2 per token:

        >>> from pl_prefopt.objectives.examples import example
        >>> PlackettLuceRanking()(example([-4.0, -8.0])).loss  # −log σ(1)
        tensor([0.3133])
    """

    data = ("lists", "pairs")
    use_when = "Lists are fully ranked, only the order is to be trusted, and there is no reference."

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__(score=MeanLogProb(beta), structure=PlackettLuce())

    beta = property(lambda self: self.score.beta)


class LambdaLoss(Compose, ReferenceObjective):
    """LiPO-λ: −Σ_{s_i > s_j} λ_ij log σ(r_i − r_j), r = β log(π_θ / π_ref), λ the change of DCG by a swap.

    λ_ij = |2^s_i − 2^s_j| · |1/log(1 + ρ_i) − 1/log(1 + ρ_j)|, ρ the rank by the current reward, without
    gradient; see ``functional.swap_gain`` for ties. Liu et al. ("LiPO"), arXiv 2402.01878, eq. 8.

    The paper's scores are mean win probabilities in [0, 1]. Gains are powers of two: a score of 10 weighs a
    thousand times as much as one of 0. Scores are limited to 30 in magnitude.

    Args:
        beta: β > 0; 0.05 is the paper's.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> LambdaLoss()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # (1/log 2 − 1/log 3) log 2
        tensor([0.3691])
    """

    data = ("lists", "pairs")
    use_when = "The top of a list matters more than its tail."

    def __init__(self, *, beta: float = 0.05) -> None:
        super().__init__(score=LogRatio(beta), structure=SumOfPairs(), weights=[SwapGain()])

    beta = property(lambda self: self.score.beta)


class _TargetObjective(Objective):
    """Cross-entropy of a distribution over a prompt's responses with a target; both sum to 1 per prompt."""

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's cross-entropy and the implicit rewards."""
        there = self.compared(batch)
        counted = there.sum(dim=-1) > 1
        there = there & counted.unsqueeze(-1)
        logits = torch.where(batch.present, self.logits(batch), 0.0)
        loss = functional.softmax_cross_entropy(logits, self.target(batch, there).detach(), there)
        return Outcome(loss=loss, counted=counted, reward=self.reward(batch))

    def compared(self, batch: ScoredBatch) -> Tensor:
        """Return bool [B, R], the responses over which the distributions go."""
        return known(batch.scores, batch.present)

    @abstractmethod
    def logits(self, batch: ScoredBatch) -> Tensor:
        """Return the policy's logits [B, R], with gradient."""

    @abstractmethod
    def target(self, batch: ScoredBatch, there: Tensor) -> Tensor:
        """Return the target [B, R], 0 where ``there`` is false."""

    @abstractmethod
    def reward(self, batch: ScoredBatch) -> Tensor:
        """Return each response's implicit reward [B, R], detached, 0 where absent."""


class _LogRatioTarget(_TargetObjective, ReferenceObjective):
    """A target for the softmax of r = β log(π_θ / π_ref)."""

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = positive("beta", beta)

    def logits(self, batch: ScoredBatch) -> Tensor:
        """Return r."""
        return self.beta * (batch.policy.sum - batch.references[0])

    def reward(self, batch: ScoredBatch) -> Tensor:
        """Return r, detached."""
        return torch.where(batch.present, self.logits(batch).detach(), 0.0)


class SoftmaxCrossEntropy(_LogRatioTarget):
    """LiPO's softmax loss: −Σ_i (s_i / Σ_j s_j) log softmax(r)_i, r = β log(π_θ / π_ref), s ≥ 0 the scores.

    Liu et al. ("LiPO"), arXiv 2402.01878, where s is a mean win probability in [0, 1]. With one response of
    score 1 among others of score 0 it is softmax-DPO, with two DPO. Scores that tie share the target; a
    prompt whose scores are all 0 gives no loss.

    Args:
        beta: β > 0; 0.05 is the paper's.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> SoftmaxCrossEntropy()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2
        tensor([0.6931])
    """

    data = ("lists", "pairs")
    use_when = "Scores are win rates or other shares, and a response twice as good should be twice as likely."

    def __init__(self, *, beta: float = 0.05) -> None:
        super().__init__(beta=beta)

    @property
    def needs(self) -> Needs:
        """One reference, two responses, and scores of at least 0."""
        return Needs(min_references=1, max_references=1, min_responses=2, score_range=(0.0, math.inf))

    def compared(self, batch: ScoredBatch) -> Tensor:
        """Leave out prompts that have nothing but zeros."""
        there = known(batch.scores, batch.present)
        return there & (there & (batch.scores > 0)).any(dim=-1, keepdim=True)

    def target(self, batch: ScoredBatch, there: Tensor) -> Tensor:
        """Return each score's share of the prompt's sum."""
        scores = torch.where(there, batch.scores, 0.0).to(batch.policy.sum.dtype)
        scores = scores / scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1)


class ListNet(_LogRatioTarget):
    """ListNet: −Σ_i softmax(s/τ)_i log softmax(r)_i, r = β log(π_θ / π_ref), s the scores.

    Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007, with the softmax
    of scores as the target, τ = 1. On log-ratios it is this project's reading, beside LiPO's losses (arXiv
    2402.01878). Tied scores share the target, so that equal scores teach equal rewards.

    Args:
        beta: β > 0; 0.05 is LiPO's for the other list losses.
        temperature: τ > 0, in units of the score.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> ListNet()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2
        tensor([0.6931])
    """

    data = ("scores",)
    use_when = "Scores are a judge's logits, and small gaps should stay small."

    def __init__(self, *, beta: float = 0.05, temperature: float = 1.0) -> None:
        super().__init__(beta=beta)
        self.temperature = positive("temperature", temperature)

    @property
    def needs(self) -> Needs:
        """One reference, and two responses whose scores are more than an order."""
        return Needs(min_references=1, max_references=1, min_responses=2, graded=True)

    def compared(self, batch: ScoredBatch) -> Tensor:
        """Leave out rows of bare labels."""
        return known(batch.scores, batch.present) & batch.graded.unsqueeze(-1)

    def target(self, batch: ScoredBatch, there: Tensor) -> Tensor:
        """Return the softmax of scores."""
        return functional.softmax_over(batch.scores.to(batch.policy.sum.dtype) / self.temperature, there)


class BRAIn(_TargetObjective):
    """BRAIn: −Σ_i α̂_i log β̂_i with self-normalised posterior and policy, whose gradient is −Σ(α̂ − β̂)∇log π_θ.

    Over the responses i to a prompt, sampled from a proposal q′,

        α̂_i ∝ π_ref(y_i) exp(s_i/γ) / q′(y_i) (a constant),    β̂_i ∝ π_θ(y_i) / q′(y_i).

    Pandey et al., arXiv 2402.02479; formula from the authors' code. Each weighs by how probable its sampling
    was, so q′ must be the model that wrote the responses. With q′ = π_ref and hard targets on two responses
    it is DPO with β = 1.

    Args:
        temperature: γ > 0, in units of the score; the published value was not found, so there is no default.
        proposal: where log q′(y|x) comes from: a reference, or a column of the rows.

    Raises:
        ConfigError: if ``temperature`` is not above 0.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> from pl_prefopt.objectives.proposals import ReferenceProposal
        >>> batch = example([-10.0, -10.0], [-10.0, -10.0])
        >>> BRAIn(temperature=1.0, proposal=ReferenceProposal(0))(batch).loss  # log 2
        tensor([0.6931])
    """

    data = ("scores",)
    references = (1, 2)
    use_when = "Responses were sampled from a model that you still have, and scored by a reward model."

    def __init__(self, *, temperature: float, proposal: Proposal) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.proposal = proposal

    @property
    def needs(self) -> Needs:
        """The prior as the first reference, the proposal, and two scored responses."""
        return Needs.of_all(Needs(min_references=1, min_responses=2, graded=True), self.proposal.needs)

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse a column that holds anything but one number per response."""
        super().check_training_rows(rows)
        self.proposal.check_rows(rows)

    def check_evaluation_rows(self, rows: Sequence[PreferenceRow], split: str) -> None:
        """Refuse such a column where a loss is computed."""
        if split != "predict":
            self.proposal.check_rows(rows, split)

    def compared(self, batch: ScoredBatch) -> Tensor:
        """Leave out rows of bare labels."""
        return known(batch.scores, batch.present) & batch.graded.unsqueeze(-1)

    def logits(self, batch: ScoredBatch) -> Tensor:
        """Return log π_θ − log q′."""
        return batch.policy.sum - self.proposal(batch)

    def target(self, batch: ScoredBatch, there: Tensor) -> Tensor:
        """Return the self-normalised weights of the posterior."""
        scores = batch.scores.to(batch.policy.sum.dtype) / self.temperature
        return functional.softmax_over(batch.references[0] - self.proposal(batch) + scores, there)

    def reward(self, batch: ScoredBatch) -> Tensor:
        """Return γ log(π_θ / π_ref), what the policy implies the scores to be."""
        ratio = (batch.policy.sum - batch.references[0]).detach()
        return torch.where(batch.present, self.temperature * ratio, 0.0)


class _SquaredTarget(ReferenceObjective):
    """½[(a_w − t_w)² + (a_l − t_l)²], w and l the best and the worst response, a = log(π_θ / π_ref).

    Responses that share the best or the worst score are averaged over.
    """

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = positive("beta", beta)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and the rewards βa."""
        there = known(batch.scores, batch.present) & self.usable(batch).unsqueeze(-1)
        counted = rankable(batch.scores, there)
        ratio = torch.where(batch.present, batch.policy.sum - batch.references[0], 0.0)
        scores = torch.where(there, batch.scores, 0.0).to(ratio.dtype)
        error = (ratio - self.centred(scores, there) / self.beta).square()
        both = (
            _mean_over(best(batch.scores, there), error) + _mean_over(worst(batch.scores, there), error)
        ) / 2
        return Outcome(
            loss=torch.where(counted, both, 0.0), counted=counted, reward=self.beta * ratio.detach()
        )

    def usable(self, batch: ScoredBatch) -> Tensor:
        """Return bool [B], the rows whose scores can be made into targets."""
        return batch.graded

    @abstractmethod
    def centred(self, scores: Tensor, there: Tensor) -> Tensor:
        """Return βt [B, R], finite."""


class SPPO(_SquaredTarget):
    """Self-play preference optimisation, soft: ½ Σ_{w, l} (log(π_θ/π_ref)(y) − (P̂(y) − ½)/β)².

    P̂ is the response's win rate over all K responses to the prompt, itself (½) included; w and l are those
    with the highest and the lowest score. Wu et al., arXiv 2405.00675; formula and defaults from the authors'
    code, with K = 5, three rounds, and the policy of the round before as the reference. A prompt whose scores
    are all equal has neither w nor l and gives no loss.

    Args:
        beta: β > 0, the paper's 1/η; 0.001.
        win_rates: how win rates follow from the scores.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        An untrained policy, win rates 1 and 0, so that the targets are 1 and −1:

        >>> from pl_prefopt.objectives.win_rates import GivenWinRates
        >>> from pl_prefopt.types import ResponseLogProbs
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=torch.tensor([[-8.0, -8.0]]), length=torch.tensor([[4, 4]])),
        ...     references=torch.full((1, 1, 2), -8.0),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ... )
        >>> SPPO(beta=0.5, win_rates=GivenWinRates())(batch).loss
        tensor([1.])
    """

    data = ("scores",)
    use_when = "Several samples of the policy itself were compared by a judge."

    def __init__(self, *, beta: float = 0.001, win_rates: WinRates = BRADLEY_TERRY) -> None:
        super().__init__(beta=beta)
        self.win_rates = win_rates

    @property
    def needs(self) -> Needs:
        """One reference, two responses, and scores that give win rates."""
        return Needs.of_all(Needs(min_references=1, max_references=1, min_responses=2), self.win_rates.needs)

    def usable(self, batch: ScoredBatch) -> Tensor:
        """Return the rows from which win rates follow."""
        return batch.graded if self.win_rates.needs.graded else torch.ones_like(batch.graded)

    def centred(self, scores: Tensor, there: Tensor) -> Tensor:
        """Return P̂ − ½."""
        return self.win_rates(scores, there) - 0.5


class GPO(_SquaredTarget):
    """General preference optimisation: ½ Σ_{w, l} (log(π_θ/π_ref)(y) − ŝ(y)/β)².

    ŝ(y) is the mean preference score of y over all K responses to the prompt, itself (0) included; w and l
    are those with the highest and the lowest. Zhang et al., arXiv 2410.02197. The rows' scores are taken for
    ŝ and centred, which changes nothing for the means of an antisymmetric preference model, and turns the
    scores s of a reward model into the means of s_i − s_k. The authors' code uses table[i][j] − table[j][i],
    twice the preference score; here it is not doubled. The mean over w and l is taken as in SPPO's code; a
    clamp of 1000 in their scripts is not applied.

    Args:
        beta: β > 0; 0.001 in the authors' scripts.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        An untrained policy whose targets are 1 and −1:

        >>> from pl_prefopt.objectives.examples import example
        >>> GPO(beta=1.0)(example([-8.0, -8.0], [-8.0, -8.0], scores=[1.0, -1.0])).loss
        tensor([1.])
    """

    data = ("scores",)
    use_when = "A preference model has scored several samples of the policy itself against each other."

    def __init__(self, *, beta: float = 0.001) -> None:
        super().__init__(beta=beta)

    @property
    def needs(self) -> Needs:
        """One reference, and two responses whose scores are more than an order."""
        return Needs(min_references=1, max_references=1, min_responses=2, graded=True)

    def centred(self, scores: Tensor, there: Tensor) -> Tensor:
        """Return the scores minus their mean."""
        count = there.sum(dim=-1, keepdim=True).clamp(min=1)
        return scores - torch.where(there, scores, 0.0).sum(dim=-1, keepdim=True) / count


class RAFT(SFT):
    """Reward-ranked fine-tuning, best-of-n SFT: −log π_θ(y_best|x) / |y_best|.

    Dong et al., arXiv 2304.06767. Best responses that tie are averaged over. Prompts are weighted equally,
    however long their responses are. It is ``SFT`` with its defaults, under a name of its own.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> RAFT()(example([-4.0, -12.0, -8.0], scores=[5.0, 4.0, 1.0])).loss
        tensor([1.])
    """

    use_when = "A base model is to be fine-tuned on the best of several responses before anything else."

    def __init__(self) -> None:
        super().__init__(responses="best", average="sequence")


def _mean_over(chosen: Tensor, values: Tensor) -> Tensor:
    """Return the mean of ``values`` [B, R] over the chosen responses of each prompt, 0 without any."""
    total = torch.where(chosen, values, 0.0).sum(dim=-1)
    return total / chosen.sum(dim=-1).clamp(min=1)

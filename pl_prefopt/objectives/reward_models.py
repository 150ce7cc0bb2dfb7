"""Reward models: the reward r(x, y) is the output of a head, trained on pairs, lists, labels or scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pl_prefopt.objectives.base import Needs, RewardObjective
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.links import Logistic
from pl_prefopt.objectives.offsets import ColumnMargin, LogScoreGap, Offset, ScoreGap
from pl_prefopt.objectives.pair_weights import ColumnWeight, PairWeight
from pl_prefopt.objectives.scores import HeadReward
from pl_prefopt.objectives.structures import MeanOfPairs, PlackettLuce
from pl_prefopt.objectives.terms import Centring, Term
from pl_prefopt.objectives.unpaired import check_both_kinds
from pl_prefopt.pairing import ALL_PAIRS, Pairing, known
from pl_prefopt.requests import REWARD
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/reward_models.md"


class BradleyTerryObjective(Compose, RewardObjective):
    """A logistic loss of reward differences: the base of the Bradley-Terry reward models.

    Args:
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        centring: c ≥ 0, the weight of (r_w + r_l)².
        pairing: which responses to compare.
        offsets: what a difference must reach beyond 0.
        weights: of the pairs.
        more_terms: losses to add.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        centring: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
        offsets: Sequence[Offset] = (),
        weights: Sequence[PairWeight] = (),
        more_terms: Sequence[Term] = (),
    ) -> None:
        terms = [*([Centring(centring)] if centring else []), *more_terms]
        super().__init__(
            score=HeadReward(),
            structure=MeanOfPairs(pairing),
            link=Logistic(label_smoothing),
            offsets=offsets,
            weights=weights,
            terms=terms,
        )
        self.centring = Centring(centring).weight

    label_smoothing = property(lambda self: self.link.label_smoothing)


class BradleyTerry(BradleyTerryObjective):
    """Bradley-Terry: −(1 − ε) log σ(r_w − r_l) − ε log σ(r_l − r_w) + c (r_w + r_l)², r the head's reward.

    Ouyang et al., arXiv 2203.02155, eq. 1, as the mean over a prompt's pairs. ε = 0 and c = 0 are the plain
    model. The optimum of smoothed labels is at r_w − r_l = logit(1 − ε). Differences alone leave the level of
    the rewards open; c > 0 keeps pairs around 0, as TRL's ``center_rewards_coefficient``, for which TRL
    recommends 0.01.

    Args:
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        centring: c ≥ 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> BradleyTerry()(rewarded([2.0, 0.0])).loss  # log(1 + exp(-2))
        tensor([0.1269])
        >>> BradleyTerry(centring=0.01)(rewarded([2.0, 0.0])).loss  # and 0.01 · 2²
        tensor([0.1669])
    """

    data = ("pairs", "lists")
    use_when = "Responses are compared in pairs, and a reward per response is wanted."

    def __init__(
        self, *, label_smoothing: float = 0.0, centring: float = 0.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, centring=centring, pairing=pairing)


class MarginBradleyTerry(BradleyTerryObjective):
    """Bradley-Terry with a margin: −log σ(r_w − r_l − m) + c (r_w + r_l)², m from a column or the scores.

    Touvron et al. ("Llama 2"), arXiv 2307.09288, eq. 2. Its m is a number per pair by how much the winner was
    said to be better: 1, 2/3, 1/3 and 0, or 3, 2, 1 and 0. As TRL's RewardTrainer with a ``margin`` column.
    Where the margins are mean differences of an ensemble's rewards, it is the adaptive margin of Wang et al.,
    arXiv 2401.06080.

    Args:
        margin: ``ColumnMargin`` for a column of the rows, ``ScoreGap`` or ``LogScoreGap`` for the difference
            of the scores.
        centring: c ≥ 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> batch = rewarded([2.0, 0.0], columns={"margin": torch.tensor([2.0])})
        >>> MarginBradleyTerry(margin=ColumnMargin("margin"))(batch).loss
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "The data says by how much a response is better, and clear winners should win by more."

    def __init__(
        self,
        *,
        margin: ColumnMargin | ScoreGap | LogScoreGap,
        centring: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(offsets=[margin], centring=centring, pairing=pairing)

    margin = property(lambda self: self.offsets[0])


class ScaledBradleyTerry(BradleyTerryObjective):
    """Bradley-Terry, scaled: −m log σ(r_w − r_l) + c (r_w + r_l)², m from a column.

    Wang et al. ("HelpSteer2-Preference"), arXiv 2410.01257, eq. 3. There m is 1, 2 or 3 for slightly better,
    better and much better; the gradient is m times that of Bradley-Terry.

    Args:
        column: the name of the column, with one number of at least 0 per row.
        centring: c ≥ 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> batch = rewarded([2.0, 0.0], columns={"magnitude": torch.tensor([3.0])})
        >>> ScaledBradleyTerry()(batch).loss  # 3 log(1 + exp(-2))
        tensor([0.3808])
    """

    data = ("pairs", "lists")
    use_when = "The data says by how much a response is better, and clear winners should count more."

    def __init__(
        self, *, column: str = "magnitude", centring: float = 0.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(weights=[ColumnWeight(column)], centring=centring, pairing=pairing)

    column = property(lambda self: self.weights[0].column)


class RewardPlackettLuce(Compose, RewardObjective):
    """Plackett-Luce over a ranked list: −Σ_k log[exp r_k / (exp r_k + Σ_{i below k} exp r_i)].

    Zhu et al., arXiv 2301.11270, eq. 2, on the head's rewards. With two responses it is Bradley-Terry.
    Responses that tie are not compared with each other.

    Args:
        centring: c ≥ 0, the weight of (r_w + r_l)², the mean over the pairs.

    Raises:
        ConfigError: if ``centring`` is negative.

    Examples:
        Equal rewards give all 3! orders the same probability:

        >>> from pl_prefopt.objectives.examples import rewarded
        >>> RewardPlackettLuce()(rewarded([1.0, 1.0, 1.0], scores=[3.0, 2.0, 1.0])).loss.exp()
        tensor([6.])
    """

    data = ("lists", "pairs")
    use_when = "Lists are fully ranked, only the order is to be trusted, and a reward is wanted."

    def __init__(self, *, centring: float = 0.0) -> None:
        terms = [Centring(centring)] if centring else []
        super().__init__(score=HeadReward(), structure=PlackettLuce(), terms=terms)
        self.centring = Centring(centring).weight


class PointwiseRewardObjective(RewardObjective):
    """A loss of each response with a known score by itself, averaged over those of a prompt."""

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average each prompt's losses over its responses with a known score."""
        there = known(batch.scores, batch.present)
        reward = torch.where(batch.present, batch.outputs[REWARD].squeeze(-1), 0.0)
        losses = self.losses(reward, torch.where(there, batch.scores, 0.0).to(reward.dtype))
        loss = torch.where(there, losses, 0.0).sum(dim=-1) / there.sum(dim=-1).clamp(min=1)
        return Outcome(loss=loss, counted=there.any(dim=-1), reward=reward.detach())

    @abstractmethod
    def losses(self, reward: Tensor, scores: Tensor) -> Tensor:
        """Return the loss of each response, [B, R]; scores are 0 where unknown."""


class RewardRegression(PointwiseRewardObjective):
    """Regression on scores: (r − s)², the mean over a prompt's responses with a known score s.

    As the regression models of HelpSteer2 (Wang et al., arXiv 2406.08673), with one attribute. The rewards
    are then in units of the scores. The gradient of a response is 2(r − s), divided by their number.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> RewardRegression()(rewarded([2.0, 0.0], scores=[4.0, 1.0])).loss  # (4 + 1) / 2
        tensor([2.5000])
    """

    data = ("scores", "lists", "unpaired")
    use_when = "Responses have scores on one scale, and the reward should predict them."

    def __init__(self) -> None:
        super().__init__()

    @property
    def needs(self) -> Needs:
        """One reward per response, and scores whose differences mean something."""
        return Needs(max_references=0, reward_outputs=1, log_probs=False, graded=True)

    def losses(self, reward: Tensor, scores: Tensor) -> Tensor:
        return (reward - scores).square()


class RewardClassification(PointwiseRewardObjective):
    """Classification of single responses: −log σ(r) if desirable, −log σ(−r) if not.

    The cross-entropy of verifiers (Cobbe et al., arXiv 2110.14168): σ(r) is the probability that a response
    is desirable.

    Args:
        desirable_above: a response with a score above this is desirable, any other with a known score not.
            Training needs both.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> RewardClassification()(rewarded([2.0], scores=[1.0])).loss  # log(1 + exp(-2))
        tensor([0.1269])
    """

    data = ("unpaired", "pairs", "lists")
    use_when = "Each response has a thumbs up or down of its own, and a probability is wanted."

    def __init__(self, *, desirable_above: float = 0.5) -> None:
        super().__init__()
        self.desirable_above = desirable_above

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Raise if the rows are all desirable or all undesirable."""
        super().check_training_rows(rows)
        check_both_kinds(type(self).__name__, rows, self.desirable_above)

    def losses(self, reward: Tensor, scores: Tensor) -> Tensor:
        return softplus(torch.where(scores > self.desirable_above, -reward, reward))

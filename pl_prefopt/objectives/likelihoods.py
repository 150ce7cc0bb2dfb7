"""Pairs without a reference, beside SimPO and ORPO: CPO, AlphaPO, SLiC-HF, RRHF and ASFT."""

from __future__ import annotations

import dataclasses

from pl_prefopt.objectives.base import ReferenceFreeObjective
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.links import HingeLink, Logistic
from pl_prefopt.objectives.offsets import Margin
from pl_prefopt.objectives.pair_weights import ConstantWeight
from pl_prefopt.objectives.scores import LogOdds, MeanLogProb, SumLogProb, TransformedMeanLogProb
from pl_prefopt.objectives.structures import MeanOfPairs, SumOfPairs
from pl_prefopt.objectives.terms import NegativeLogLikelihood, SequenceNegativeLogLikelihood
from pl_prefopt.objectives.two_sided import BinaryClassification
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/reference_free.md"


class CPO(Compose, ReferenceFreeObjective):
    """Contrastive preference optimisation: −log σ(β[log π_θ(y_w) − log π_θ(y_l)]) − λ log π_θ(y_w)/|y_w|.

    Xu et al., arXiv 2401.08417. With ε > 0 labels are smoothed as in cDPO. TRL's likelihood term is the mean
    over all chosen tokens of a batch, here it is the mean over prompts. β 0.1 and λ 1 are TRL's defaults.

    Args:
        beta: β > 0, the scale of the log-prob.
        nll_weight: λ ≥ 0; TRL's ``cpo_alpha``.
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> CPO(beta=0.5)(example([-8.0, -12.0])).loss  # log(1 + exp(−2)) + 8/4
        tensor([2.1269])
    """

    data = ("pairs", "lists")
    use_when = "There is no memory for a reference, and chosen responses are good enough to imitate."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        nll_weight: float = 1.0,
        label_smoothing: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(
            score=SumLogProb(beta),
            structure=MeanOfPairs(pairing),
            link=Logistic(label_smoothing),
            terms=[NegativeLogLikelihood(nll_weight)],
        )

    beta = property(lambda self: self.score.beta)
    nll_weight = property(lambda self: self.terms[0].weight)
    label_smoothing = property(lambda self: self.link.label_smoothing)


class CPOSimPO(Compose, ReferenceFreeObjective):
    """CPO with SimPO's margin: −log σ(βℓ̄_w − βℓ̄_l − γ) − λℓ̄_w, ℓ̄ the log-prob per token.

    SimPO, arXiv 2405.14734, with the likelihood term of CPO, arXiv 2401.08417, as TRL's ``simpo`` loss has it
    for ``cpo_alpha`` > 0. β 0.1, γ 0.5 and λ 1 are TRL's defaults; SimPO's papers use β of 2 and more.

    Args:
        beta: β > 0, the scale of the log-prob per token.
        gamma: γ ≥ 0, the margin of rewards to reach; not divided by β.
        nll_weight: λ ≥ 0; TRL's ``cpo_alpha``. 0 is SimPO.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> CPOSimPO(beta=1.0)(example([-8.0, -10.0])).loss  # log 2 + 8/4
        tensor([2.6931])
    """

    data = ("pairs", "lists")
    use_when = "SimPO lets the likelihood of chosen responses fall."

    def __init__(
        self, *, beta: float = 0.1, gamma: float = 0.5, nll_weight: float = 1.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(
            score=MeanLogProb(beta),
            structure=MeanOfPairs(pairing),
            offsets=[Margin(gamma)],
            terms=[NegativeLogLikelihood(nll_weight)],
        )

    beta = property(lambda self: self.score.beta)
    gamma = property(lambda self: self.offsets[0].gamma)
    nll_weight = property(lambda self: self.terms[0].weight)


class AlphaPO(Compose, ReferenceFreeObjective):
    """SimPO with a curved reward: −log σ(r_w − r_l − γ) with r = β(1 − p^−α)/α and p = exp ℓ̄.

    Gupta et al., arXiv 2501.03884. α = 0 is SimPO; the slope of the reward in the log-prob per token is
    βp^−α, so that for α > 0 unlikely responses move more. Published settings as TRL's paper index lists them:
    α 0.25, β 2.5, γ 0.1, learning rate 7e-7.

    Args:
        alpha: α, the shape of the reward.
        beta: β > 0, the scale of the reward.
        gamma: γ ≥ 0, the margin of rewards to reach; not divided by β.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> AlphaPO(alpha=1.0, beta=1.0, gamma=0.0)(example([-4.0, -4.0])).reward  # 1 − e
        tensor([[-1.7183, -1.7183]])
    """

    data = ("pairs", "lists")
    use_when = "SimPO lets likelihoods fall, or over-optimises."

    def __init__(
        self, *, alpha: float = 0.25, beta: float = 2.5, gamma: float = 0.1, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(
            score=TransformedMeanLogProb(beta, alpha),
            structure=MeanOfPairs(pairing),
            offsets=[Margin(gamma)],
        )

    alpha = property(lambda self: self.score.alpha)
    beta = property(lambda self: self.score.beta)
    gamma = property(lambda self: self.offsets[0].gamma)


class SLiCHF(Compose, ReferenceFreeObjective):
    """Sequence likelihood calibration: max(0, δ − log π_θ(y_w) + log π_θ(y_l)) − λ log π_θ(y_best).

    Zhao et al., arXiv 2305.10425, with log-probs summed over tokens. Published values of δ and λ were not
    found, so they have no defaults. (``Hinge`` is the same link on DPO's log-ratios.)

    Args:
        delta: δ ≥ 0, the margin of log-probs to reach.
        nll_weight: λ ≥ 0, of the best response's likelihood.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> SLiCHF(delta=3.0, nll_weight=0.1)(example([-8.0, -10.0])).loss  # 1 + 0.8
        tensor([1.8000])
    """

    data = ("pairs", "lists")
    use_when = "Pairs that are right by a margin should give no gradient, and there is no reference."

    def __init__(self, *, delta: float, nll_weight: float, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(
            score=SumLogProb(1.0),
            structure=MeanOfPairs(pairing),
            link=HingeLink(non_negative("delta", delta)),
            terms=[SequenceNegativeLogLikelihood(nll_weight)],
        )

    delta = property(lambda self: self.link.target)
    nll_weight = property(lambda self: self.terms[0].weight)


class RRHF(Compose, ReferenceFreeObjective):
    """Rank responses to align: Σ max(0, ℓ̄_l − ℓ̄_w) − λ log π_θ(y_best), ℓ̄ the log-prob per token.

    Yuan et al., arXiv 2304.05302. The ranking loss has no margin; that of the best response is summed over
    its tokens. A published value of λ was not verified, so it has no default.

    Args:
        nll_weight: λ ≥ 0, of the best response's likelihood.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> RRHF(nll_weight=0.1)(example([-10.0, -8.0])).loss  # 2.5 − 2 + 1
        tensor([1.5000])
    """

    data = ("lists", "pairs")
    use_when = "Several responses are ranked, and a loss without settings is wanted."

    def __init__(self, *, nll_weight: float, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(
            score=MeanLogProb(1.0),
            structure=SumOfPairs(pairing),
            link=HingeLink(0.0),
            terms=[SequenceNegativeLogLikelihood(nll_weight)],
        )

    nll_weight = property(lambda self: self.terms[0].weight)


class ASFT(Compose, ReferenceFreeObjective):
    """Aligned fine-tuning: −ℓ̄_w − λ log σ(logit p_w) − λ log σ(−logit p_l), p the likelihood per token.

    Wang et al., arXiv 2409.10571, as a survey of direct alignment prints it; no official code was found. It
    equals −(1 + λ)ℓ̄_w − λ log(1 − p_l), and is never below ORPO's loss. λ was not found, so it has no
    default; the survey varies it from 0.1 to 1. Rewards are λℓ̄, as for ORPO.

    Args:
        weight: λ ≥ 0, of the preference terms.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> ASFT(weight=1.0)(example([-4.0, -4.0])).loss  # 2 − log(1 − 1/e)
        tensor([2.4587])
    """

    data = ("pairs", "lists")
    use_when = (
        "A base model is fine-tuned and aligned at once, and rejected responses should fall by themselves."
    )

    def __init__(self, *, weight: float, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(
            score=LogOdds(),
            structure=MeanOfPairs(pairing),
            link=BinaryClassification(),
            weights=[ConstantWeight(non_negative("weight", weight))],
            terms=[NegativeLogLikelihood()],
        )

    weight = property(lambda self: self.weights[0].value)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and the rewards λℓ̄."""
        mean = batch.policy.mean.detach().where(batch.present, 0.0)
        return dataclasses.replace(super().forward(batch), reward=self.weight * mean)

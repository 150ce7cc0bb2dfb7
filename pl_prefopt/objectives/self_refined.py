"""Sr-DPO and Sr-IPO: the policy's own judgement, asked for quality, refines the margin to reach."""

from __future__ import annotations

from pl_prefopt.objectives.base import Objective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.links import LOGISTIC, Squared
from pl_prefopt.objectives.offsets import QUALITY_PROMPT, Refinement
from pl_prefopt.objectives.pair_references import SINGLE_REFERENCE, PairReference
from pl_prefopt.objectives.scores import VirtualLogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.views import View

PAGE = "methods/sr_dpo.md"


class SelfRefinedObjective(Objective):
    """The family that scores pairs a second time, under a prompt that asks for quality: Sr-DPO, Sr-IPO."""

    references = (1, None)


class SrDPO(Compose, SelfRefinedObjective):
    """Self-refined DPO: −log σ(βh − λ sg(Δ)), with Δ = βh under the quality prompt.

    Yu et al., arXiv 2405.21040, eq. 12 and 13. With ``reference`` a ``VirtualReference`` it is self-refined
    MRPO. The reward leaves the refinement out.

    Args:
        beta: β > 0, the strength of the KL penalty; larger values keep the policy closer to the reference.
        strength: λ ≥ 0, of the refinement; at 0 it is DPO.
        view: the prompt under which the policy judges.
        reference: what the policy is compared with, under both prompts.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = example([-10.0, -10.0], [-10.0, -10.0])
        >>> batch = with_view(batch, "quality", [-10.0, -10.0], [-10.0, -10.0])
        >>> SrDPO()(batch).loss  # log 2
        tensor([0.6931])
    """

    use_when = "Pairs differ in quality by different amounts, and nobody has graded them."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        strength: float = 0.5,
        view: View = QUALITY_PROMPT,
        reference: PairReference = SINGLE_REFERENCE,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(
            score=VirtualLogRatio(beta, reference),
            structure=MeanOfPairs(pairing),
            link=LOGISTIC,
            offsets=[Refinement(strength, view)],
        )

    beta = property(lambda self: self.score.beta)
    strength = property(lambda self: self.offsets[0].strength)
    view = property(lambda self: self.offsets[0].view)
    reference = property(lambda self: self.score.reference)


class SrIPO(Compose, SelfRefinedObjective):
    """Self-refined IPO on sums of log-probs: (h − λ sg(Δ) − 1/(2β))², with Δ = βh under the quality prompt.

    Yu et al., arXiv 2405.21040, eq. 12 and 15. As printed, Δ carries β and h does not.

    Args:
        beta: β > 0, IPO's τ; the minimum is at the margin of log-ratios 1/(2β) + λΔ.
        strength: λ ≥ 0, of the refinement; at 0 it is IPO.
        view: the prompt under which the policy judges.
        reference: what the policy is compared with, under both prompts.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = example([-10.0, -10.0], [-10.0, -10.0])
        >>> batch = with_view(batch, "quality", [-10.0, -10.0], [-10.0, -10.0])
        >>> SrIPO(beta=0.2)(batch).loss  # 1/(4β²)
        tensor([6.2500])
    """

    use_when = "As Sr-DPO, with a loss that has a minimum at a finite margin."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        strength: float = 0.5,
        view: View = QUALITY_PROMPT,
        reference: PairReference = SINGLE_REFERENCE,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        # Offsets are in units of the reward βh, so the one that h is compared with is multiplied by β.
        offset = Refinement(positive("beta", beta) * non_negative("strength", strength), view)
        self._strength = strength
        super().__init__(
            score=VirtualLogRatio(beta, reference),
            structure=MeanOfPairs(pairing),
            link=Squared(beta),
            offsets=[offset],
        )

    beta = property(lambda self: self.score.beta)
    strength = property(lambda self: self._strength)
    view = property(lambda self: self.offsets[0].view)
    reference = property(lambda self: self.score.reference)

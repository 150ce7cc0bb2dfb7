"""VPO and XPO: DPO with a term for the value of the calibration responses."""

from __future__ import annotations

from pl_prefopt.objectives.base import ReferenceObjective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.scores import LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.terms import CalibratedOn, Calibration
from pl_prefopt.pairing import ALL_PAIRS, Pairing

PAGE = "methods/pairs.md"


class VPO(Compose, ReferenceObjective):
    """Value-incentivised preference optimisation: −log σ(βh) ∓ αβ E log π_θ(y|x), y ~ π_cal.

    Cen et al., arXiv 2405.19320: − offline, which raises the calibration responses (pessimism), + online,
    which lowers them (optimism). Derived from the paper's definition; its π_cal and α were not found, so α
    has no default. On chosen responses the offline term is fine-tuning with the weight αβ, on samples of the
    reference a KL penalty αβ KL(π_ref ‖ π_θ).

    Args:
        alpha: α ≥ 0, the strength of the value term; 0 is DPO.
        beta: β > 0, the strength of the KL penalty.
        calibration: the responses that stand for π_cal: ``chosen``, ``rejected``, ``both`` or
            ``reference_samples``.
        column: for ``reference_samples``, the name of a column with true or false per response.
        online: whether responses are samples of the current policy, which turns the term's sign.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> VPO(alpha=0.5, beta=0.1)(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2 + 0.05 · 10
        tensor([1.1931])
    """

    data = ("pairs", "lists")
    use_when = "Offline pairs cover few of the responses that the policy could give."

    def __init__(
        self,
        *,
        alpha: float,
        beta: float = 0.1,
        calibration: CalibratedOn = "chosen",
        column: str = "reference_sample",
        online: bool = False,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        sign = 1 if online else -1
        term = Calibration(sign * non_negative("alpha", alpha) * beta, calibration, column)
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), terms=[term])
        self.alpha, self.online = alpha, online

    beta = property(lambda self: self.score.beta)
    calibration = property(lambda self: self.terms[0].on)
    column = property(lambda self: self.terms[0].column)


class XPO(VPO):
    """Exploratory preference optimisation: −log σ(βh) + α log π_θ(y_ref|x), y_ref a sample of the reference.

    Xie et al., arXiv 2405.21046. It is online VPO with the reference as π_cal and α_VPO = α/β. α = 1e-5 is
    TRL's default. Pairs are one sample of the policy and one of the reference, and a column tells which is
    which.

    Args:
        alpha: α ≥ 0, of the summed log-prob of the reference's sample; 0 is DPO.
        beta: β > 0, the strength of the KL penalty.
        column: the name of a column with true or false per response, true for the reference's sample.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> import torch
        >>> from pl_prefopt.objectives.examples import example
        >>> marks = {"reference_sample": torch.tensor([[False, True]])}
        >>> XPO(alpha=0.01)(example([-8.0, -10.0], [-8.0, -10.0], columns=marks)).loss  # log 2 − 0.1
        tensor([0.5931])
    """

    data = ("pairs", "lists")
    use_when = "Rounds of online training that should explore beyond the reference."

    def __init__(
        self,
        *,
        alpha: float = 1e-5,
        beta: float = 0.1,
        column: str = "reference_sample",
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(
            alpha=alpha / positive("beta", beta),
            beta=beta,
            calibration="reference_samples",
            column=column,
            online=True,
            pairing=pairing,
        )
        self.alpha = alpha

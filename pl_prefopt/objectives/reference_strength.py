"""DPO with other weights of policy and references, winners and losers, and other functions of the margin."""

from __future__ import annotations

from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives.base import ReferenceObjective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.links import LogRatioModulated, Squared
from pl_prefopt.objectives.log_ratios import FlexibleLogRatio, GeometricLogRatio, PartialLogRatio
from pl_prefopt.objectives.scores import LogRatio, MeanLogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.terms import SequenceNegativeLogLikelihood
from pl_prefopt.pairing import ALL_PAIRS, Pairing

PAGE = "methods/pairs.md"


class GammaDPO(Compose, ReferenceObjective):
    """DPO against a share of the reference: −log σ(β[log π_θ(y_w)/π_θ(y_l) − γ log π_ref(y_w)/π_ref(y_l)]).

    Chen et al., "Preference Learning Algorithms Do Not Learn Preference Rankings", arXiv 2405.19534 (DPO^γ;
    ``alpha_scaling`` in its code). γ = 1 is DPO, γ = 0 CPO's preference term. The paper varies γ, so it has
    no default. Rewards are β(log π_θ − γ log π_ref).

    Args:
        gamma: γ ≥ 0, the strength of the reference.
        beta: β > 0, the scale of the reward.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> GammaDPO(gamma=0.5, beta=1.0)(example([-8.0, -10.0], [-10.0, -14.0])).loss
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "The reference ranks many pairs wrong, and DPO does not turn them round."

    def __init__(self, *, gamma: float, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=PartialLogRatio(beta, gamma), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)
    gamma = property(lambda self: self.score.gamma)


class FlexDPO(Compose, ReferenceObjective):
    """Flex-DPO: −log σ(β⁺a(y_w) − β⁻a(y_l)) − α log π_θ(y_w), a the log-ratio.

    "3D-Properties: Identifying Challenges in DPO and Charting a Path Forward", arXiv 2406.07327, with both of
    its regularisers: β⁻ < β⁺ slows the fall of the rejected response, and α > 0 fine-tunes on the chosen one
    (the best one of a list), its log-prob summed over tokens. Equal β and α = 0 are DPO. The loss's gradients
    in log π_θ are in the ratio −β⁻/β⁺. The paper's values were not found, so β⁺ and β⁻ have no defaults.
    Rewards are β⁺a(y).

    Args:
        beta_chosen: β⁺ > 0.
        beta_rejected: β⁻ > 0.
        sft_weight: α ≥ 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> FlexDPO(beta_chosen=1.0, beta_rejected=0.5)(example([-9.0, -12.0], [-10.0, -10.0])).loss
        tensor([0.1269])
    """

    data = ("pairs", "lists")
    use_when = "Rejected responses fall much faster than chosen ones rise."

    def __init__(
        self,
        *,
        beta_chosen: float,
        beta_rejected: float,
        sft_weight: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        self_weight = non_negative("sft_weight", sft_weight)
        super().__init__(
            score=FlexibleLogRatio(beta_chosen, beta_rejected),
            structure=MeanOfPairs(pairing),
            terms=[SequenceNegativeLogLikelihood(self_weight)] if self_weight else [],
        )
        self.sft_weight = self_weight

    beta_chosen = property(lambda self: self.score.beta_chosen)
    beta_rejected = property(lambda self: self.score.beta_rejected)


class NormDPO(Compose, ReferenceObjective):
    """Length-normalised DPO: −log σ(β[a(y_w)/|y_w| − a(y_l)/|y_l|]), a the log-ratio.

    Tülu 3 (Lambert et al., arXiv 2411.15124); TRL's ``sigmoid_norm``. For two responses of n tokens it is DPO
    with β/n. β has no default: it must be larger than DPO's by about the length of a response.

    Args:
        beta: β > 0, the strength of the KL penalty per token.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> NormDPO(beta=4.0)(example([-8.0, -10.0], [-10.0, -10.0], lengths=[4, 8])).loss
        tensor([0.1269])
        >>> NormDPO(beta=4.0)(example([-10.0, -10.0], [-10.0, -10.0])).loss  # its start, log 2
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "Long responses should not outweigh short ones by their number of tokens."

    def __init__(self, *, beta: float, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=MeanLogRatio(beta), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)


class DiscoPOP(Compose, ReferenceObjective):
    """DiscoPOP: −(1 − m) log σ(z) + m exp(−z) with z = βh and m = σ(z/τ).

    Lu et al., arXiv 2406.08414, eq. 5: a loss that a language model proposed. It is not monotonous: for τ =
    0.05 it has a local minimum at z = −0.11857 and a local maximum at z = 0.07201, and at z = 0, where
    training begins, its slope is +0.784, so that margins shrink there. Only pairs past the maximum are driven
    apart. Published settings as TRL's paper index lists them: β 0.05, τ 0.05, learning rate 5e-7, batches of
    64.

    Args:
        beta: β > 0, the strength of the KL penalty.
        tau: τ in (0, 1), the width of the blend.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> DiscoPOP()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # ½ log 2 + ½
        tensor([0.8466])
    """

    data = ("pairs", "lists")
    use_when = "To repeat its experiments; it holds back pairs that are almost tied."

    def __init__(self, *, beta: float = 0.05, tau: float = 0.05, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), link=LogRatioModulated(tau))

    beta = property(lambda self: self.score.beta)
    tau = property(lambda self: self.link.tau)


class INPO(Compose):
    """Iterative Nash policy optimisation: (h − 1/(2η))², h against two references mixed geometrically.

    Zhang et al., arXiv 2407.00617, eqs 5 to 8: h is the margin of log π_θ − (τ/η) log π_ref − (1 − τ/η) log
    π_t, with π_t the policy of the previous round. τ = η is IPO against π_ref, τ = 0 against π_t. The paper's
    values were not found, so η and τ have no defaults. Rewards are η times the mixed log-ratio.

    Args:
        eta: η > 0; the minimum is at h = 1/(2η).
        tau: τ in [0, η], the strength of π_ref, which is the first of ``references.members``; π_t is the
            second.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> INPO(eta=0.5, tau=0.25)(example([-8.0, -10.0], [-10.0, -10.0], [-8.0, -12.0])).loss  # (0 − 1)²
        tensor([1.])
    """

    data = ("pairs", "lists")
    references = (2, 2)
    use_when = "Rounds of self-play that should stay close to the first policy, too."

    def __init__(self, *, eta: float, tau: float, pairing: Pairing = ALL_PAIRS) -> None:
        if not 0 <= tau <= positive("eta", eta):
            raise ConfigError(f"tau must be at least 0 and at most eta, {eta}, but is {tau}.")
        share = tau / eta
        super().__init__(
            score=GeometricLogRatio(eta, (share, 1 - share)),
            structure=MeanOfPairs(pairing),
            link=Squared(eta),
        )
        self.tau = tau

    eta = property(lambda self: self.score.beta)

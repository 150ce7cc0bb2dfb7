"""DPO and its relatives: pairs of log-ratios against one reference."""

from __future__ import annotations

from typing import Literal

from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives.base import ReferenceObjective
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.divergences import REVERSE_KL, Divergence
from pl_prefopt.objectives.links import HingeLink, Logistic, Robust, Squared
from pl_prefopt.objectives.offsets import Drop
from pl_prefopt.objectives.pair_weights import PolicyProbability
from pl_prefopt.objectives.scores import LogRatio, MeanLogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.pairing import ALL_PAIRS, Pairing

PAGE = "methods/dpo.md"


class DPO(Compose, ReferenceObjective):
    """Direct preference optimisation: −(1 − ε) log σ(βh) − ε log σ(−βh), h the margin of log-ratios.

    Rafailov et al., arXiv 2305.18290, eq. 7; with ε > 0 conservative DPO (Mitchell 2023).

    Args:
        beta: β > 0, the strength of the KL penalty; larger values keep the policy closer to the reference.
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> DPO()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2
        tensor([0.6931])
    """

    use_when = "Pairs, and a first try; the method against which others are judged."

    def __init__(
        self, *, beta: float = 0.1, label_smoothing: float = 0.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), link=Logistic(label_smoothing))

    beta = property(lambda self: self.score.beta)
    label_smoothing = property(lambda self: self.link.label_smoothing)


class IPO(Compose, ReferenceObjective):
    """Identity preference optimisation: (h − 1/(2β))², h the margin of log-ratios.

    Azar et al., arXiv 2310.12036, eq. 17.

    Args:
        beta: β > 0, the paper's τ; the minimum is at the margin 1/(2β).
        normalize: ``sum`` compares sequences as the paper prints it; ``mean`` divides each log-ratio by its
            response's length, which its authors did in their experiments and TRL does.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> IPO(beta=0.2)(example([-10.0, -10.0], [-10.0, -10.0])).loss  # 1/(4β²)
        tensor([6.2500])
    """

    use_when = "Pairs whose margins run away under DPO: its loss has a minimum at a finite margin."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        normalize: Literal["sum", "mean"] = "sum",
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        scores = {"sum": LogRatio, "mean": MeanLogRatio}
        if normalize not in scores:
            raise ConfigError(f"normalize must be 'sum' or 'mean', but is {normalize!r}.")
        super().__init__(score=scores[normalize](beta), structure=MeanOfPairs(pairing), link=Squared(beta))

    beta = property(lambda self: self.score.beta)
    normalize = property(lambda self: "mean" if isinstance(self.score, MeanLogRatio) else "sum")


class Hinge(Compose, ReferenceObjective):
    """The hinge loss of DPO's margin: max(0, 1 − βh) (SLiC, arXiv 2305.10425; RSO, arXiv 2309.06657).

    Args:
        beta: β > 0; pairs with a log-ratio margin above 1/β give no gradient.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> Hinge()(example([-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([1.])
    """

    use_when = "Pairs that are learned once their margin is large enough should no longer move the policy."

    def __init__(self, *, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), link=HingeLink())

    beta = property(lambda self: self.score.beta)


class RobustDPO(Compose, ReferenceObjective):
    """Provably robust DPO for a known share of flipped labels (Chowdhury et al., arXiv 2403.00409).

    Args:
        beta: β > 0, the strength of the KL penalty.
        flip_rate: ε in [0, 0.5), the share of labels known to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> RobustDPO()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2
        tensor([0.6931])
    """

    use_when = "A known share of the labels is wrong."

    def __init__(self, *, beta: float = 0.1, flip_rate: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), link=Robust(flip_rate))

    beta = property(lambda self: self.score.beta)
    flip_rate = property(lambda self: self.link.flip_rate)


class DPOP(Compose, ReferenceObjective):
    """DPO-Positive, which keeps the chosen response likely: −log σ(β(h − λ max(0, −a(y_w)))).

    Pal et al. ("Smaug"), arXiv 2402.13228; a is the log-ratio.

    Args:
        beta: β > 0, the strength of the KL penalty.
        penalty: λ ≥ 0, on a chosen response less likely than under the reference.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Both log-probs have fallen by 1:

        >>> from pl_prefopt.objectives.examples import example
        >>> DPOP(beta=0.1, penalty=5.0)(example([-11.0, -11.0], [-10.0, -10.0])).loss  # −log σ(−0.1 · 5)
        tensor([0.9741])
    """

    use_when = (
        "The chosen response's likelihood falls during DPO, as it does where pairs differ by a few tokens."
    )

    def __init__(self, *, beta: float = 0.3, penalty: float = 50.0, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), offsets=[Drop(penalty)])

    beta = property(lambda self: self.score.beta)
    penalty = property(lambda self: self.offsets[0].penalty)


class WPO(Compose, ReferenceObjective):
    """Weighted preference optimisation: −w(y_w) w(y_l) log σ(βh), w(y) = exp(mean_t log[π(y_t) / Σ_v π(v)²]).

    Zhou et al., arXiv 2406.11827, eq. 2, on DPO; h is the margin of log-ratios, and the weights carry no
    gradient. ``PolicyProbability`` weights the pairs of other objectives in the same way.

    Args:
        beta: β > 0, the strength of the KL penalty; 0.01 is the value in TRL's index of papers.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        One token each, where the policy is uniform over two tokens: the weight is 1.

        >>> import torch
        >>> from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers
        >>> half = torch.tensor([[[0.5], [0.5]]]).log()
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=half.sum(-1), length=torch.tensor([[1, 1]])),
        ...     references=half.sum(-1).unsqueeze(0),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ...     tokens=TokenNumbers(
        ...         counted=half < 0, policy=half, references=half.new_empty(0, 1, 2, 1), collisions=half
        ...     ),
        ... )
        >>> WPO()(batch).loss, torch.tensor(2.0).log()
        (tensor([0.6931]), tensor(0.6931))
    """

    use_when = "The responses come from other models, and those like the policy's own should count more."

    def __init__(self, *, beta: float = 0.01, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), weights=[PolicyProbability()])

    beta = property(lambda self: self.score.beta)


class FDPO(Compose, ReferenceObjective):
    """DPO under another divergence from the reference: −log σ(βf′(u_w) − βf′(u_l)), u = π_θ / π_ref.

    Wang et al., "Beyond Reverse KL", arXiv 2309.16240.

    Args:
        beta: β > 0, the strength of the penalty.
        divergence: f, by which the distance from the reference is measured.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example
        >>> FDPO()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2
        tensor([0.6931])
    """

    use_when = (
        "The policy should stay close to the reference in another sense than the reverse KL divergence."
    )

    def __init__(
        self, *, beta: float = 0.1, divergence: Divergence = REVERSE_KL, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(score=LogRatio(beta, divergence), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)
    divergence = property(lambda self: self.score.divergence)

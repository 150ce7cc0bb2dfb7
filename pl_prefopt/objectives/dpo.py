"""DPO and the objectives that change only its loss of a pair."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError
from pl_prefopt.functional import PairwiseLoss
from pl_prefopt.objectives.checks import below_half, non_negative, positive
from pl_prefopt.objectives.divergences import REVERSE_KL, Divergence
from pl_prefopt.objectives.pairs import PairwiseReferenceObjective, compare
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.types import Outcome, ScoredBatch


class DPO(PairwiseReferenceObjective):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290); conservative with smoothing.

    Args:
        beta: β > 0, how dear it is to leave the reference.
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self, *, beta: float = 0.1, label_smoothing: float = 0.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(pairing=pairing)
        self.beta = positive("beta", beta)
        self.label_smoothing = below_half("label_smoothing", label_smoothing)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.dpo``."""
        return functional.dpo(*winner_and_loser, beta=self.beta, label_smoothing=self.label_smoothing)


class IPO(PairwiseReferenceObjective):
    """Identity preference optimisation (Azar et al., arXiv 2310.12036).

    Args:
        beta: β > 0, the paper's τ; the margin of the log-ratios is drawn to 1/(2β).
        normalize: ``sum`` compares sequences as the paper prints it; ``mean`` divides each log-ratio by its
            response's length, which its authors did in their experiments and TRL does.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        *,
        beta: float = 0.1,
        normalize: Literal["sum", "mean"] = "sum",
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(pairing=pairing)
        if normalize not in ("sum", "mean"):
            raise ConfigError(f"normalize must be 'sum' or 'mean', but is {normalize!r}.")
        self.beta = positive("beta", beta)
        self.normalize = normalize

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Compare sums of log-probs, or averages over the policy's tokens.

        The reference is divided by the policy's length too: its own tokeniser may count otherwise, and
        two averages over different numbers of tokens do not compare.
        """
        if self.normalize == "sum":
            return super().forward(batch)
        length = batch.policy.length.clamp(min=1)
        return compare(batch, self.pairing, self.pair_loss, batch.policy.mean, batch.references[0] / length)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.ipo``."""
        return functional.ipo(*winner_and_loser, beta=self.beta)


class Hinge(PairwiseReferenceObjective):
    """The hinge loss on DPO's margin (SLiC, arXiv 2305.10425; RSO, arXiv 2309.06657).

    Args:
        beta: β > 0; pairs with a log-ratio margin above 1/β give no gradient.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(pairing=pairing)
        self.beta = positive("beta", beta)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.hinge``."""
        return functional.hinge(*winner_and_loser, beta=self.beta)


class RobustDPO(PairwiseReferenceObjective):
    """Provably robust DPO for a known share of flipped labels (Chowdhury et al., arXiv 2403.00409).

    Args:
        beta: β > 0, how dear it is to leave the reference.
        flip_rate: ε in [0, 0.5), the share of labels known to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, beta: float = 0.1, flip_rate: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(pairing=pairing)
        self.beta = positive("beta", beta)
        self.flip_rate = below_half("flip_rate", flip_rate)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.robust_dpo``."""
        return functional.robust_dpo(*winner_and_loser, beta=self.beta, flip_rate=self.flip_rate)


class DPOP(PairwiseReferenceObjective):
    """DPO-Positive, which keeps the chosen response likely (Pal et al., arXiv 2402.13228).

    Args:
        beta: β > 0, how dear it is to leave the reference.
        penalty: λ ≥ 0, on a chosen response less likely than under the reference.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, beta: float = 0.3, penalty: float = 50.0, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(pairing=pairing)
        self.beta = positive("beta", beta)
        self.penalty = non_negative("penalty", penalty)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.dpop``."""
        return functional.dpop(*winner_and_loser, beta=self.beta, penalty=self.penalty)


class FDPO(PairwiseReferenceObjective):
    """DPO with another divergence from the reference (Wang et al., arXiv 2309.16240).

    Args:
        beta: β > 0, how dear it is to leave the reference.
        divergence: by what the distance from the reference is measured.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self, *, beta: float = 0.1, divergence: Divergence = REVERSE_KL, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(pairing=pairing)
        self.beta = positive("beta", beta)
        self.divergence = divergence

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.f_dpo``."""
        return functional.f_dpo(*winner_and_loser, beta=self.beta, derivative=self.divergence)

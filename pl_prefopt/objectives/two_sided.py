"""Links of both rewards of a pair, for losses that the margin alone does not determine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt.functional import anchored
from pl_prefopt.objectives.checks import positive


class TwoSidedLink(ABC):
    """A loss of the rewards of a winner and of a loser."""

    @abstractmethod
    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of each pair of r_w [B, R, 1] and r_l [B, 1, R], or of both [B, R, R]."""


@dataclass(frozen=True)
class NoiseContrast(TwoSidedLink):
    """−log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), see ``functional.anchored.nca_pair``."""

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return anchored.nca_pair(chosen, rejected)


@dataclass(frozen=True)
class BinaryClassification(TwoSidedLink):
    """−log σ(r_w) − log σ(−r_l), see ``functional.anchored.bco_pair``."""

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return anchored.bco_pair(chosen, rejected)


@dataclass(frozen=True)
class HardWinRates(TwoSidedLink):
    """((r_w − ½)/β)² + ((r_l + ½)/β)², see ``functional.anchored.sppo_hard``.

    Args:
        beta: β > 0, that of the score.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return anchored.sppo_hard(chosen, rejected, beta=self.beta)


@dataclass(frozen=True)
class AnchoredZero(TwoSidedLink):
    """1 − σ(r_w) + σ(r_l), see ``functional.anchored.apo_zero``."""

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return anchored.apo_zero(chosen, rejected)


@dataclass(frozen=True)
class AnchoredDown(TwoSidedLink):
    """σ(r_w) + 1 − σ(r_w − r_l), see ``functional.anchored.apo_down``."""

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return anchored.apo_down(chosen, rejected)

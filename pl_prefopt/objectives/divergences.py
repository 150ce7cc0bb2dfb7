"""The divergences that f-DPO may be given, as settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError


class Divergence(ABC):
    """A divergence D_f(π_θ ‖ π_ref), known by its derivative."""

    @abstractmethod
    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Return f′(u) for log u = log π_θ(y|x) − log π_ref(y|x), shifted to be 0 at u = 1."""


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(π_θ ‖ π_ref), DPO's own."""

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Return ``functional.reverse_kl``."""
        return functional.reverse_kl(log_ratio)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(π_ref ‖ π_θ), which covers all that the reference does."""

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Return ``functional.forward_kl``."""
        return functional.forward_kl(log_ratio)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """The Jensen-Shannon divergence, symmetric and bounded."""

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Return ``functional.jensen_shannon``."""
        return functional.jensen_shannon(log_ratio)


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """The α-divergence, between the reverse KL (α → 0) and the forward KL (α → 1).

    Args:
        alpha: α in (0, 1).

    Raises:
        ConfigError: if ``alpha`` lies outside.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(
                f"alpha must be above 0 (ReverseKL) and below 1 (ForwardKL), but is {self.alpha}."
            )

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Return ``functional.alpha_divergence``."""
        return functional.alpha_divergence(log_ratio, alpha=self.alpha)


REVERSE_KL = ReverseKL()
"""The default of f-DPO, with which it is DPO."""

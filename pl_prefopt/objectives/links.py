"""Links as settings: how the margin of two implicit rewards becomes a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.functional import links
from pl_prefopt.objectives.checks import below_half, non_negative, positive


class Link(ABC):
    """A decreasing loss of a margin z = r_w − r_l − offset."""

    @abstractmethod
    def __call__(self, margin: Tensor) -> Tensor:
        """Return the loss of each margin, in its shape."""


@dataclass(frozen=True)
class Logistic(Link):
    """−(1 − ε) log σ(z) − ε log σ(−z), see ``functional.links.logistic``.

    Args:
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.

    Raises:
        ConfigError: if ``label_smoothing`` is out of range.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        below_half("label_smoothing", self.label_smoothing)

    def __call__(self, margin: Tensor) -> Tensor:
        return links.logistic(margin, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Squared(Link):
    """((z − ½) / β)², see ``functional.links.squared``.

    Args:
        beta: β > 0, that of the score.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, margin: Tensor) -> Tensor:
        return links.squared(margin, beta=self.beta)


@dataclass(frozen=True)
class HingeLink(Link):
    """max(0, δ − z), see ``functional.links.hinge``.

    Args:
        target: δ ≥ 0, the margin beyond which there is no loss.

    Raises:
        ConfigError: if ``target`` is negative.
    """

    target: float = 1.0

    def __post_init__(self) -> None:
        non_negative("target", self.target)

    def __call__(self, margin: Tensor) -> Tensor:
        return links.hinge(margin, target=self.target)


@dataclass(frozen=True)
class Robust(Link):
    """−log σ(z) − zε/(1 − 2ε), see ``functional.links.robust``.

    Args:
        flip_rate: ε in [0, 0.5), the share of labels known to be flipped.

    Raises:
        ConfigError: if ``flip_rate`` is out of range.
    """

    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        below_half("flip_rate", self.flip_rate)

    def __call__(self, margin: Tensor) -> Tensor:
        return links.robust(margin, flip_rate=self.flip_rate)


@dataclass(frozen=True)
class ExactOptimization(Link):
    """KL(q ‖ (1 − ε, ε)) with q = σ(z), see ``functional.links.exo``.

    Args:
        epsilon: ε in (0, 0.5), the probability that the label leaves to the loser.

    Raises:
        ConfigError: if ``epsilon`` is out of range.
    """

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        positive("epsilon", below_half("epsilon", self.epsilon))

    def __call__(self, margin: Tensor) -> Tensor:
        return links.exo(margin, epsilon=self.epsilon)


@dataclass(frozen=True)
class LogRatioModulated(Link):
    """−(1 − m) log σ(z) + m exp(−z) with m = σ(z/τ), see ``functional.links.discopop``.

    Args:
        tau: τ in (0, 1), the width of the blend.

    Raises:
        ConfigError: if ``tau`` is out of range.
    """

    tau: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise ConfigError(f"tau must be above 0 and below 1, but is {self.tau}.")

    def __call__(self, margin: Tensor) -> Tensor:
        return links.discopop(margin, tau=self.tau)


@dataclass(frozen=True)
class LeastSquares(Link):
    """z²: the margin is regressed on its offsets, such as differences of win rates by ``ScoreGap``.

    Examples:
        >>> import torch
        >>> LeastSquares()(torch.tensor([-0.5, 2.0]))
        tensor([0.2500, 4.0000])
    """

    def __call__(self, margin: Tensor) -> Tensor:
        return margin.square()


class GivenLosses(Link):
    """Losses that were computed before, in the shape of the margins: for structures, which apply a link.

    Args:
        losses: of each pair.
    """

    def __init__(self, losses: Tensor) -> None:
        self.losses = losses

    def __call__(self, margin: Tensor) -> Tensor:
        return self.losses.expand_as(margin)


LOGISTIC = Logistic()
"""The default link, without label smoothing."""

"""How several references become one, as settings: weights, clip and aggregate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives.checks import non_negative


class Weights(ABC):
    """How much each reference counts for a pair of responses."""

    @property
    def count(self) -> int | None:
        """The number of references that the weights are for; ``None`` if any."""
        return None

    @abstractmethod
    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return α_k from the log-probs of winner and loser under reference k, unclipped.

        Args:
            chosen: [K, ...].
            rejected: [K, ...].

        Returns:
            Weights of at least 0 that add up to 1 over the first dimension, in the shape to which the two
            broadcast, without gradient.
        """


@dataclass(frozen=True)
class AdaptiveWeights(Weights):
    """Weights proportional to how well each reference separates the pair: MRPO's ARWC."""

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return ``functional.adaptive_weights``."""
        return functional.adaptive_weights(chosen, rejected)


@dataclass(frozen=True)
class UniformWeights(Weights):
    """1/K for each reference."""

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return 1/K everywhere."""
        return torch.full_like((chosen - rejected).detach(), 1 / len(chosen))


@dataclass(frozen=True)
class FixedWeights(Weights):
    """The same weights for all pairs.

    Args:
        values: one number of at least 0 per reference, in the order of ``references.members``. They are
            divided by their sum.

    Raises:
        ConfigError: if one is negative, or none above 0.
    """

    values: list[float]

    def __post_init__(self) -> None:
        if not self.values or not all(value >= 0 for value in self.values) or not sum(self.values) > 0:
            raise ConfigError(
                f"values must be numbers of at least 0 with one above 0, but are {list(self.values)}."
            )

    @property
    def count(self) -> int:
        """One reference per value."""
        return len(self.values)

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the values as shares, everywhere."""
        gap = (chosen - rejected).detach()
        shares = gap.new_tensor(self.values) / sum(self.values)
        return shares.reshape(-1, *[1] * (gap.dim() - 1)).expand_as(gap)


class Clip(ABC):
    """The clip range of the other references around the first."""

    @abstractmethod
    def __call__(self, references: Tensor, others: Tensor) -> Tensor:
        """Return ε(y) of one response of each pair, from the log-probs of both, unclipped.

        Args:
            references: L_k(y), [K, ...].
            others: L_k of the other response of the pair, [K, ...].

        Returns:
            ε in the shape to which the two broadcast without K, without gradient.
        """


@dataclass(frozen=True)
class AdaptiveClip(Clip):
    """ε_max, split between a pair's two responses by how unlikely the references find them.

    Args:
        epsilon_max: the sum of ε over a pair's two responses; at 0 MRPO is DPO, from about 1e6 on nothing is
            clipped.

    Raises:
        ConfigError: if ``epsilon_max`` is negative.
    """

    epsilon_max: float = 0.1

    def __post_init__(self) -> None:
        non_negative("epsilon_max", self.epsilon_max)

    def __call__(self, references: Tensor, others: Tensor) -> Tensor:
        """Return ``functional.adaptive_epsilon``."""
        return functional.adaptive_epsilon(references, others, epsilon_max=self.epsilon_max)


@dataclass(frozen=True)
class FixedClip(Clip):
    """The same ε for all responses.

    Args:
        epsilon: ε; at 0 MRPO is DPO, from about 1e6 on nothing is clipped.

    Raises:
        ConfigError: if ``epsilon`` is negative.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        non_negative("epsilon", self.epsilon)

    def __call__(self, references: Tensor, others: Tensor) -> Tensor:
        """Return ε everywhere."""
        return torch.full_like((references - others)[0].detach(), self.epsilon)


class Aggregate(ABC):
    """The rule that combines the K references into one."""

    @abstractmethod
    def __call__(self, references: Tensor, weights: Tensor) -> Tensor:
        """Return log π̃(y), [...], from log-probs and weights, both [K, ...] or broadcastable to it."""


@dataclass(frozen=True)
class Harmonic(Aggregate):
    """The weighted harmonic mean of probabilities: MRPO as published."""

    def __call__(self, references: Tensor, weights: Tensor) -> Tensor:
        """Return ``functional.log_harmonic_mean``."""
        return functional.log_harmonic_mean(references, weights)


@dataclass(frozen=True)
class Geometric(Aggregate):
    """The weighted geometric mean of probabilities: the exact optimum of the objective behind MRPO."""

    def __call__(self, references: Tensor, weights: Tensor) -> Tensor:
        """Return ``functional.log_geometric_mean``."""
        return functional.log_geometric_mean(references, weights)


ADAPTIVE_WEIGHTS = AdaptiveWeights()
ADAPTIVE_CLIP = AdaptiveClip()
HARMONIC = Harmonic()

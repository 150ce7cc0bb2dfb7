"""Combinations of several rewards into one, as settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.rewards import functions
from pl_prefopt.rewards.transforms import RewardTransform


class RewardCombination(ABC):
    """A function of J rewards per response: of a head's outputs, or of several models."""

    @property
    def count(self) -> int | None:
        """J; ``None`` if any number goes."""
        return None

    def __call__(self, rewards: Tensor) -> Tensor:
        """Return one reward per response, [...], with gradient.

        Args:
            rewards: [..., J].

        Raises:
            ContractError: if the combination is for another number of rewards.
        """
        if self.count is not None and rewards.shape[-1] != self.count:
            raise ContractError(
                f"{type(self).__name__} combines {self.count} rewards, but got {rewards.shape[-1]}: give one "
                "part per reward."
            )
        return self.combine(rewards)

    @abstractmethod
    def combine(self, rewards: Tensor) -> Tensor:
        """Return one reward per response, [...], from J rewards, [..., J]."""


@dataclass(frozen=True)
class SumOfTransforms(RewardCombination):
    """Σ_i u_i(r_i): with ``LogSigmoid`` the log-probability that all properties are good.

    Wang et al., arXiv 2402.00742.

    Args:
        transforms: u_i, one per reward.

    Raises:
        ConfigError: if there are none.

    Examples:
        >>> from pl_prefopt.rewards import LogSigmoid
        >>> both = SumOfTransforms([LogSigmoid(0.0), LogSigmoid(0.0)])
        >>> both(torch.tensor([0.0, 0.0])).exp()
        tensor(0.2500)
    """

    transforms: Sequence[RewardTransform]

    def __post_init__(self) -> None:
        if not self.transforms:
            raise ConfigError("expected `transforms` to have one part per reward, got none.")

    @property
    def count(self) -> int:
        """One reward per transform."""
        return len(self.transforms)

    def combine(self, rewards: Tensor) -> Tensor:
        parts = [one(rewards[..., place]) for place, one in enumerate(self.transforms)]
        return torch.stack(parts, dim=-1).sum(dim=-1)


@dataclass(frozen=True)
class _WithWeights(RewardCombination):
    """A combination with a weight per reward."""

    weights: list[float]

    def __post_init__(self) -> None:
        _check_weights(self.weights)

    @property
    def count(self) -> int:
        """One reward per weight."""
        return len(self.weights)


@dataclass(frozen=True)
class WeightedMean(_WithWeights):
    """Σ_i w_i r_i / Σ_i w_i.

    Args:
        weights: w_i ≥ 0, one per reward.

    Raises:
        ConfigError: if one is negative, or none above 0.
    """

    def combine(self, rewards: Tensor) -> Tensor:
        return functions.weighted_mean(rewards, rewards.new_tensor(self.weights))


@dataclass(frozen=True)
class HarmonicMean(_WithWeights):
    """Σ_i w_i / Σ_i (w_i / r_i), of rewards above 0; it is drawn towards the smallest of them.

    NaN where a reward is not above 0: make them positive first, by ``Affine`` or a sigmoid.

    Args:
        weights: w_i ≥ 0, one per reward.

    Raises:
        ConfigError: if one is negative, or none above 0.
    """

    def combine(self, rewards: Tensor) -> Tensor:
        return functions.harmonic_mean(rewards, rewards.new_tensor(self.weights))


@dataclass(frozen=True)
class Minimum(RewardCombination):
    """min_c (r_c − b_c): the reward of the group of users that is served worst, as MaxMin-RLHF's code has it.

    Chakraborty et al., arXiv 2402.08925. Each response's minimum is taken, which is pessimistic: the paper
    has the minimum of expectations. Where all have reached the same, several are smallest, and share the
    gradient.

    Args:
        baselines: b_c, one per reward, such as each reward's mean; ``None`` for 0.

    Examples:
        >>> Minimum(baselines=[1.0, 0.0])(torch.tensor([2.0, 3.0]))
        tensor(1.)
    """

    baselines: list[float] | None = None

    @property
    def count(self) -> int | None:
        """One reward per baseline; any number without."""
        return None if self.baselines is None else len(self.baselines)

    def combine(self, rewards: Tensor) -> Tensor:
        if self.baselines is not None:
            rewards = rewards - rewards.new_tensor(self.baselines)
        return functions.minimum(rewards)


def _check_weights(weights: Sequence[float]) -> None:
    if not weights or not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ConfigError(f"weights must be numbers of at least 0 with one above 0, but are {list(weights)}.")

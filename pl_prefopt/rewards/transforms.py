"""Transforms of a reward, as settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt.checks import positive
from pl_prefopt.errors import ConfigError
from pl_prefopt.rewards import functions


class RewardTransform(ABC):
    """An increasing function of a reward: the order of responses to a prompt stays."""

    @abstractmethod
    def __call__(self, reward: Tensor) -> Tensor:
        """Return the transformed rewards, in their shape, with gradient."""


@dataclass(frozen=True)
class LogSigmoid(RewardTransform):
    """log σ(r − r_ref): poor responses count most, and sums of it are a logical and of properties.

    Wang et al., arXiv 2402.00742.

    Args:
        reference: r_ref, the reward of a response that is good enough; ``reference_level`` estimates it from
            samples. A tensor has one per prompt, broadcastable to the rewards.

    Examples:
        >>> import torch
        >>> LogSigmoid(reference=1.0)(torch.tensor([1.0, 3.0]))
        tensor([-0.6931, -0.1269])
    """

    reference: float | Tensor

    def __call__(self, reward: Tensor) -> Tensor:
        return functions.log_sigmoid(reward, self.reference)


@dataclass(frozen=True)
class Affine(RewardTransform):
    """a r + b: another unit and level, such as a baseline taken off.

    Args:
        scale: a > 0.
        shift: b.

    Raises:
        ConfigError: if ``scale`` is not above 0.

    Examples:
        >>> import torch
        >>> Affine(scale=2.0, shift=-1.0)(torch.tensor([1.0, 3.0]))
        tensor([1., 5.])
    """

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def __call__(self, reward: Tensor) -> Tensor:
        return self.scale * reward + self.shift


def reference_level(samples: Tensor, *, quantile: float = 0.85) -> Tensor:
    """Return r_ref, a quantile of the reference policy's rewards for each prompt, if these are normal.

    Args:
        samples: rewards of N ≥ 2 samples for each prompt, [..., N].
        quantile: in (0, 1); the 85th percentile by default.

    Raises:
        ConfigError: if there are fewer than two samples, whose spread can't be estimated, or ``quantile`` is
            out of range.

    Examples:
        >>> import torch
        >>> reference_level(torch.tensor([0.0, 2.0]))
        tensor(2.0364)
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile must be above 0 and below 1, but is {quantile}.")
    if samples.shape[-1] < 2:
        raise ConfigError(
            f"expected the rewards of at least 2 samples per prompt, got {samples.shape[-1]}: sample more "
            "responses of the reference, or give the level as a number."
        )
    return functions.normal_level(samples, quantile=quantile)

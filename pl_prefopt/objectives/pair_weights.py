"""Weights of pairs as settings. They multiply the loss of a pair and carry no gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.comparisons import Comparisons


class PairWeight(ABC):
    """Multiplies the loss of each pair."""

    @property
    def needs(self) -> Needs:
        """What the weight must be given beyond what the score is: by default nothing."""
        return Needs()

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return the weight of each pair, broadcastable to [B, R, R]; finite also where there is no pair."""


@dataclass(frozen=True)
class ConstantWeight(PairWeight):
    """The same weight for all pairs, such as ORPO's λ, the weight of the odds ratio.

    Args:
        value: λ ≥ 0.

    Raises:
        ConfigError: if ``value`` is negative.
    """

    value: float

    def __post_init__(self) -> None:
        non_negative("value", self.value)

    def __call__(self, compared: Comparisons) -> Tensor:
        return compared.rewards.chosen.new_tensor(self.value)

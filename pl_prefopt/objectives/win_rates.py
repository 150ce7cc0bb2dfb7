"""Win rates as settings: how often a response beats the others to its prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import positive


class WinRates(ABC):
    """Gives each response its win rate over all responses to the prompt, from the rows' scores."""

    @property
    def needs(self) -> Needs:
        """What the scores must be: by default anything."""
        return Needs()

    @abstractmethod
    def __call__(self, scores: Tensor, there: Tensor) -> Tensor:
        """Return P̂ [B, R] in [0, 1], finite; ``scores`` are 0 where ``there`` is false."""


@dataclass(frozen=True)
class BradleyTerryWinRates(WinRates):
    """P̂_i = mean_j σ((s_i − s_j)/τ), itself (½) included: win rates from the scores of one judge.

    Args:
        temperature: τ > 0; 1, as in SPPO's code, takes scores for logits.

    Raises:
        ConfigError: if ``temperature`` is not above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    @property
    def needs(self) -> Needs:
        """Scores whose differences mean something."""
        return Needs(graded=True)

    def __call__(self, scores: Tensor, there: Tensor) -> Tensor:
        return functional.win_rates(scores / self.temperature, there)


@dataclass(frozen=True)
class GivenWinRates(WinRates):
    """The rows' scores are the win rates. For the labels of a pair that is 1 and 0."""

    @property
    def needs(self) -> Needs:
        """Scores in [0, 1]."""
        return Needs(score_range=(0.0, 1.0))

    def __call__(self, scores: Tensor, there: Tensor) -> Tensor:
        return torch.where(there, scores, 0.5)


BRADLEY_TERRY = BradleyTerryWinRates()
"""The default."""

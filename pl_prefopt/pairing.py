"""Which response should beat which: from scores to pairs. Equal and unknown scores never make a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Pairing(ABC):
    """A rule that picks the pairs of a prompt's responses to compare."""

    @abstractmethod
    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick the pairs.

        Args:
            scores: [B, R], higher is better, NaN where unknown.
            present: bool [B, R], false at padding.

        Returns:
            bool [B, R, R], true at ``[b, i, j]`` where response i of prompt b should beat response j.
        """


@dataclass(frozen=True)
class AllPairs(Pairing):
    """Every response against every response with a lower score.

    Examples:
        >>> AllPairs()(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, True]])).nonzero().tolist()
        [[0, 0, 1], [0, 0, 2]]
    """

    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick every strictly ordered pair."""
        scores = torch.where(present, scores, torch.nan)  # a comparison with NaN is false
        return scores.unsqueeze(-1) > scores.unsqueeze(-2)


@dataclass(frozen=True)
class BestAgainstWorst(Pairing):
    """The best response against the worst: one pair a prompt.

    Responses that share the best or the worst score all take part, so that the choice does not hang
    on the order of the responses.
    """

    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick the pairs of a best and a worst response."""
        best, worst = _extremes(scores, present)
        return AllPairs()(scores, present) & best.unsqueeze(-1) & worst.unsqueeze(-2)


@dataclass(frozen=True)
class BestAgainstEach(Pairing):
    """The best response against each of the others; responses that share the best score all take part."""

    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick the pairs whose winner has the best score."""
        best, _ = _extremes(scores, present)
        return AllPairs()(scores, present) & best.unsqueeze(-1)


ALL_PAIRS = AllPairs()
"""The default of every pairwise objective and metric."""


def _extremes(scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return bool [B, R] twice: where a known score is its prompt's highest, and its lowest."""
    known = present & ~scores.isnan()
    highest = torch.where(known, scores, -torch.inf).amax(dim=-1, keepdim=True)
    lowest = torch.where(known, scores, torch.inf).amin(dim=-1, keepdim=True)
    return known & (scores == highest), known & (scores == lowest)

"""Which responses to a prompt are compared: the one definition for losses, metrics and reports.

- An unknown score (NaN) is never compared, and neither is an absent response.
- Ties: responses with equal scores make no pair. All that share the highest score are best, all that share
  the lowest are worst; where all known scores are equal, nothing can be ranked.
- Scores are compared as they are in a batch, in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError


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
    """The best response against the worst: one pair per prompt.

    Responses that share the best or the worst score all take part, so that the choice does not depend
    on the order of the responses.
    """

    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick the pairs of a best and a worst response."""
        winners, losers = best(scores, present), worst(scores, present)
        return AllPairs()(scores, present) & winners.unsqueeze(-1) & losers.unsqueeze(-2)


@dataclass(frozen=True)
class BestAgainstEach(Pairing):
    """The best response against each of the others; responses that share the best score all take part."""

    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick the pairs whose winner has the best score."""
        return AllPairs()(scores, present) & best(scores, present).unsqueeze(-1)


@dataclass(frozen=True)
class LargeMargin(Pairing):
    """Good responses against those that score much less.

    Args:
        min_score: the lowest score of a winner.
        min_gap: the smallest difference of the scores, above 0.

    Raises:
        ConfigError: if ``min_gap`` is not above 0.

    Examples:
        >>> pairing = LargeMargin(min_score=5.0, min_gap=2.0)
        >>> pairing(torch.tensor([[6.0, 4.5, 3.0]]), torch.tensor([[True, True, True]])).nonzero().tolist()
        [[0, 0, 2]]
    """

    min_score: float
    min_gap: float

    def __post_init__(self) -> None:
        if not self.min_gap > 0:
            raise ConfigError(f"min_gap must be above 0, but is {self.min_gap}.")

    def __call__(self, scores: Tensor, present: Tensor) -> Tensor:
        """Pick the pairs whose winner is good enough and far enough above the loser."""
        scores = torch.where(present, scores, torch.nan)
        far = scores.unsqueeze(-1) - scores.unsqueeze(-2) >= self.min_gap
        return far & (scores >= self.min_score).unsqueeze(-1)


ALL_PAIRS = AllPairs()
"""The default of every pairwise objective and metric."""
BEST_AGAINST_EACH = BestAgainstEach()
"""The default of structures that compare the best response with the others."""


def known(scores: Tensor, present: Tensor) -> Tensor:
    """Return bool [B, R], true where a response is present and its score is known.

    Examples:
        >>> scores = torch.tensor([[2.0, torch.nan, 1.0]])
        >>> known(scores, torch.tensor([[True, True, False]])).tolist()
        [[True, False, False]]
    """
    return present & ~scores.isnan()


def best(scores: Tensor, present: Tensor) -> Tensor:
    """Return bool [B, R], true where a known score is the highest of its prompt: several where they tie.

    Examples:
        >>> scores = torch.tensor([[2.0, 2.0, 1.0, torch.nan]])
        >>> best(scores, torch.ones(1, 4, dtype=torch.bool)).tolist()
        [[True, True, False, False]]
    """
    there = known(scores, present)
    filled = torch.where(there, scores, -torch.inf)
    return there & (filled == filled.amax(dim=-1, keepdim=True))


def worst(scores: Tensor, present: Tensor) -> Tensor:
    """Return bool [B, R], true where a known score is the lowest of its prompt: several where they tie.

    Examples:
        >>> scores = torch.tensor([[2.0, 2.0, 1.0, torch.nan]])
        >>> worst(scores, torch.ones(1, 4, dtype=torch.bool)).tolist()
        [[False, False, True, False]]
    """
    return best(-scores, present)


def below_best(scores: Tensor, present: Tensor) -> Tensor:
    """Return bool [B, R], true where a known score is lower than the highest of its prompt.

    Examples:
        >>> scores = torch.tensor([[2.0, 2.0, 1.0, torch.nan]])
        >>> below_best(scores, torch.ones(1, 4, dtype=torch.bool)).tolist()
        [[False, False, True, False]]
    """
    return known(scores, present) & ~best(scores, present)


def rankable(scores: Tensor, present: Tensor) -> Tensor:
    """Return bool [B], true where a prompt has at least two known scores that differ.

    Examples:
        >>> scores = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, torch.nan]])
        >>> rankable(scores, torch.ones(3, 2, dtype=torch.bool)).tolist()
        [True, False, False]
    """
    return below_best(scores, present).any(dim=-1)

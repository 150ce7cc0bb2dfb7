"""Soft labels as settings: the probability that the better scored response of a pair is preferred."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.links import Link
from pl_prefopt.objectives.offsets import gap
from pl_prefopt.objectives.pair_columns import (
    check_pair_column,
    check_probabilities,
    check_votes,
    numbers,
    or_else,
)
from pl_prefopt.rows import PreferenceRow


class SoftLabel(ABC):
    """q of each pair, by which its loss is q φ(z) + (1 − q) φ(−z) for the link φ. It carries no gradient."""

    @property
    def needs(self) -> Needs:
        """What the label must be given beyond what the score is: by default nothing."""
        return Needs()

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Raise if the rows of a split give no labels; by default they do."""
        del rows, split

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return q of each pair in [0, 1], broadcastable to [B, R, R]; finite also where there is no pair."""


@dataclass(frozen=True)
class ScoreLabel(SoftLabel):
    """q = σ((s_w − s_l)/T): Bradley-Terry's probability for scores that are rewards.

    With T = 1 DNO's label σ(r_w − r_l) (Rosset et al., arXiv 2404.03715).

    Args:
        temperature: T > 0, in units of the score.

    Raises:
        ConfigError: if ``temperature`` is not above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    @property
    def needs(self) -> Needs:
        """Scores whose differences mean something: a pair's bare labels, 1 and 0, would be softened."""
        return Needs(graded=True)

    def __call__(self, compared: Comparisons) -> Tensor:
        scores = compared.batch.scores.to(compared.rewards.response)
        return torch.where(compared.pairs, gap(scores), 0.0).div(self.temperature).sigmoid()


@dataclass(frozen=True)
class ColumnLabel(SoftLabel):
    """q from a column: one probability per row, or one number of votes per response.

    One number per row is the probability that the better scored response is preferred. Of votes, or shares of
    votes, q is the winner's part of the votes for the two: v_w / (v_w + v_l). 1 where a number is missing,
    where the loss is that without labels.

    Args:
        column: its name.
    """

    column: str

    @property
    def needs(self) -> Needs:
        """The column."""
        return Needs(columns=(self.column,))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse numbers outside [0, 1], or below 0 where they are votes, and pairs without votes."""
        if any(isinstance(row.columns.get(self.column), tuple) for row in rows):
            check_votes(rows, self.column, split)
        else:
            check_probabilities(rows, self.column, split)
            check_pair_column(rows, self.column, split)

    def __call__(self, compared: Comparisons) -> Tensor:
        values = numbers(compared, self.column)
        if values.dim() == 1:
            return or_else(values, 1.0).view(-1, 1, 1)
        votes = values.unsqueeze(-1) + values.unsqueeze(-2)
        return or_else(values.unsqueeze(-1) / votes, 1.0)


def labelled(link: Link, margins: Tensor, label: Tensor) -> Tensor:
    """Return q φ(z) + (1 − q) φ(−z).

    Examples:
        >>> from pl_prefopt.objectives.links import Logistic
        >>> labelled(Logistic(), torch.tensor([2.0, -2.0]), torch.tensor([0.9, 0.1]))
        tensor([0.3269, 0.3269])
    """
    label = label.detach()
    return label * link(margins) + (1 - label) * link(-margins)

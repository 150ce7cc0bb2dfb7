"""Transforms that change labels or add them: strengths, flips, soft labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pl_prefopt.data.formats import check_new_column
from pl_prefopt.data.transforms.base import (
    Outcomes,
    RowTransform,
    pair_number,
    pair_of,
    response_numbers,
    score_gap,
    take,
    with_columns,
)
from pl_prefopt.errors import ConfigError
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.views import CONTRAST


@dataclass(frozen=True)
class Strength(RowTransform):
    """Adds how sure an ensemble of reward models is of each pair: the columns ``strength``, ``strength_std``.

    û = mean over the models of r(y_w) − r(y_l), and its population standard deviation (1/M), as in Secrets of
    RLHF part II (Wang et al., arXiv 2401.06080). Below 0 the ensemble contradicts the label.

    Args:
        columns: the columns with one reward per response, one per model.
    """

    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ConfigError("Strength needs at least one column with a reward per response: set `columns`.")

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        for number, row in enumerate(rows):
            winner, loser = pair_of(row, "Strength")
            rewards = [response_numbers(row, column, "Strength") for column in self.columns]
            gaps = [one[winner] - one[loser] for one in rewards]
            mean, deviation = float(np.mean(gaps)), float(np.std(gaps))
            yield number, with_columns(row, {"strength": mean, "strength_std": deviation})


@dataclass(frozen=True)
class FlipWeak(RowTransform):
    """Swaps the labels of the pairs with the lowest strengths, and the sign of their strength.

    Secrets of RLHF part II flips the 20 % of HH-RLHF with the lowest strength, whose labels hurt.

    Args:
        column: a strength per row, or a reward per response.
        below: flips pairs with a strength below this.
        share: flips this share of the rows instead, those with the lowest strengths.

    Raises:
        ConfigError: unless exactly one of ``below`` and ``share`` is given, or if ``share`` is no share.
    """

    column: str = "strength"
    below: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.below is None) == (self.share is None):
            raise ConfigError("FlipWeak needs either `below` or `share`: set one of them.")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"expected `share` of FlipWeak to be from 0 to 1, got {self.share}.")

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        strengths = np.array([pair_number(row, self.column, "FlipWeak") for row in rows])
        if self.below is not None:
            weak = strengths < self.below
        else:
            weak = np.zeros(len(strengths), dtype=bool)
            weak[np.argsort(strengths, kind="stable")[: round((self.share or 0) * len(strengths))]] = True
        for number, is_weak in enumerate(weak.tolist()):
            yield number, flipped(rows[number], self.column) if is_weak else None


def flipped(row: PreferenceRow, column: str) -> PreferenceRow:
    """Return a pair whose other response is preferred. Twice, it is the same pair again."""
    changed = take(row, (1, 0), row.scores, graded=row.graded)
    value = row.columns.get(column)
    if isinstance(value, tuple) or value is None or isinstance(value, str):
        return changed  # one value per response moved along with the responses
    return with_columns(changed, {column: -value})


@dataclass(frozen=True)
class SmoothWeak(RowTransform):
    """Adds the probability that a label is right: 1 − α where a pair is weak, else 1.

    The loss of a weak pair is then −(1 − α) log p − α log(1 − p), label smoothing, for objectives that read
    the column, such as ``OSP``. Secrets of RLHF part II smooths pairs with a strength below 0, after flipping
    those that are far below; its α was not found and has no default.

    Args:
        alpha: α, from 0 to 0.5.
        below: pairs with a strength below this are weak.
        column: a strength per row, or a reward per response.
        absolute: whether the absolute value of the strength counts, as after ``FlipWeak``.
        into: the column that is added.

    Raises:
        ConfigError: if ``alpha`` is outside its range, or ``into`` is the name of a part of the row itself.
    """

    alpha: float
    below: float = 0.0
    column: str = "strength"
    absolute: bool = False
    into: str = "preference"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 0.5:
            raise ConfigError(f"expected `alpha` of SmoothWeak to be from 0 to 0.5, got {self.alpha}.")
        check_new_column(self.into, "`into` of SmoothWeak", CONTRAST)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        for number, row in enumerate(rows):
            strength = pair_number(row, self.column, "SmoothWeak")
            weak = (abs(strength) if self.absolute else strength) < self.below
            yield number, with_columns(row, {self.into: 1.0 - self.alpha if weak else 1.0})


@dataclass(frozen=True)
class SoftLabels(RowTransform):
    """Adds each pair's probability q = σ(gap / T), which soft-label losses such as ``OSP`` read.

    Online Self-Preferring (arXiv 2405.14103) takes the model's own probability of its preference; ``prefopt
    label`` with a judge that compares pairs writes that. From scores, such as win rates of a ranking, it is
    Bradley-Terry's: make pairs with ``AllPairs`` first. Where the gap says the opposite of the label, q is
    below 0.5.

    Args:
        temperature: T > 0, in units of the scores; there is no published one.
        column: a column with one number per response to take in place of the scores.
        into: the column that is added.

    Raises:
        ConfigError: if ``temperature`` is not above 0, or ``into`` is the name of a part of the row itself.
    """

    temperature: float
    column: str | None = None
    into: str = "preference"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"expected `temperature` of SoftLabels to be above 0, got {self.temperature}.")
        check_new_column(self.into, "`into` of SoftLabels", CONTRAST)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        for number, row in enumerate(rows):
            pair_of(row, "SoftLabels")
            gap = (
                score_gap(row, "SoftLabels")
                if self.column is None
                else pair_number(row, self.column, "SoftLabels")
            )
            yield number, with_columns(row, {self.into: _sigmoid(gap / self.temperature)})


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))

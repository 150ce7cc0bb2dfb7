"""Transforms that leave rows out: by numbers, by a peer's rewards, by source, by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.transforms.base import (
    Outcomes,
    RowTransform,
    keep,
    pair_number,
    pair_of,
    row_number,
    score_gap,
)
from pl_prefopt.errors import ConfigError
from pl_prefopt.rows import PreferenceRow


def _check_range(name: str, least: float | None, most: float | None) -> None:
    if least is None and most is None:
        raise ConfigError(f"{name} needs `least`, `most` or both.")


def _is_within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


@dataclass(frozen=True)
class KeepScoreGap(RowTransform):
    """Keeps graded rows whose highest and lowest score are neither too close nor too far apart.

    Args:
        least: the least gap.
        most: the greatest gap.

    Raises:
        ConfigError: without either.
    """

    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        _check_range("KeepScoreGap", self.least, self.most)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        for number, row in enumerate(rows):
            if _is_within(score_gap(row, "KeepScoreGap"), self.least, self.most):
                yield number, None


@dataclass(frozen=True)
class KeepColumn(RowTransform):
    """Keeps rows by a number: a confidence, the disagreement of an ensemble, a reward margin.

    Args:
        column: a column with one number per row; of one per response, a pair's margin counts, the better
            response's number minus the worse one's.
        least: the least number.
        most: the greatest number.

    Raises:
        ConfigError: without either.
    """

    column: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        _check_range("KeepColumn", self.least, self.most)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        for number, row in enumerate(rows):
            read = pair_number if isinstance(row.columns.get(self.column), tuple) else row_number
            if _is_within(read(row, self.column, "KeepColumn"), self.least, self.most):
                yield number, None


@dataclass(frozen=True)
class CrossFilter(RowTransform):
    """Keeps the pairs that a peer finds easiest: CRM's selection (arXiv 2505.10597) for one of two models.

    The peer ranks pairs by its reward margin, which is the order of its Bradley-Terry losses; the share 1 − η
    with the largest margins goes to the other model. Label the rows with two models, and train each on what
    the other one's column selects.

    Args:
        column: the peer's reward, one number per response, or its margin, one per row.
        noise_rate: η, the expected share of wrong labels.
        batch: selects from so many rows at a time, as CRM does; from all at once by default.

    Raises:
        ConfigError: if a setting is outside its range.
    """

    column: str
    noise_rate: float
    batch: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.noise_rate < 1:
            raise ConfigError(f"expected `noise_rate` of CrossFilter to be in [0, 1), got {self.noise_rate}.")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"expected `batch` of CrossFilter to be at least 1, got {self.batch}.")

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        margins = np.array([pair_number(row, self.column, "CrossFilter") for row in rows])
        size = self.batch or max(1, len(margins))
        for start in range(0, len(margins), size):
            piece = margins[start : start + size]
            count = round((1 - self.noise_rate) * len(piece))
            easiest = np.argsort(-piece, kind="stable")[:count]
            yield from keep(iter((start + np.sort(easiest)).tolist()))


@dataclass(frozen=True)
class CapSources(RowTransform):
    """Keeps at most so many rows of each source, a random choice in the order of the rows.

    Args:
        most: the number of rows of any source.
        by_source: other numbers for some sources, by the name in the rows' column ``source``.
        seed: random seed of the choice.

    Raises:
        ConfigError: if neither number is set, or one is below 0.
    """

    most: int | None = None
    by_source: dict[str, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = [*(self.by_source or {}).values(), *([] if self.most is None else [self.most])]
        if not numbers or min(numbers) < 0:
            raise ConfigError("CapSources needs `most`, `by_source` or both, with numbers of at least 0.")

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        of_source: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            of_source.setdefault(row.source, []).append(number)
        generator = np.random.default_rng(self.seed)
        kept: list[int] = []
        for source, numbers in of_source.items():
            most = (self.by_source or {}).get(source, self.most)
            if most is not None and most < len(numbers):
                chosen = generator.choice(len(numbers), size=most, replace=False)
                numbers = [numbers[place] for place in chosen.tolist()]
            kept += numbers
        return keep(iter(sorted(kept)))


@dataclass(frozen=True)
class BalanceLengths(RowTransform):
    """Keeps as many pairs whose better response is longer as pairs whose better response is shorter.

    Among pairs with similar differences of length, a random choice of the larger group stays. What is left is
    worth nothing to a rule such as "the longer one is better". Pairs of equal length stay.

    Args:
        bins: the number of groups of similar differences, of equally many pairs.
        seed: random seed of the choice.

    Raises:
        ConfigError: if ``bins`` is below 1.
    """

    bins: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ConfigError(f"expected `bins` of BalanceLengths to be at least 1, got {self.bins}.")

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        gaps = np.array([length_gap(row, "BalanceLengths") for row in rows])
        kept = gaps == 0
        unequal = np.flatnonzero(~kept)
        order = unequal[np.argsort(np.abs(gaps[unequal]), kind="stable")]
        generator = np.random.default_rng(self.seed)
        for group in np.array_split(order, self.bins):
            longer, shorter = group[gaps[group] > 0], group[gaps[group] < 0]
            size = min(len(longer), len(shorter))
            for side in (longer, shorter):
                kept[_choose(side, size, generator.permutation)] = True
        return keep(iter(np.flatnonzero(kept).tolist()))


def _choose(
    numbers: npt.NDArray[np.int64], size: int, permutation: Callable[[int], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    return numbers[permutation(len(numbers))[:size]]


def length_gap(row: PreferenceRow, reader: str) -> int:
    """Return the characters of a pair's better response minus those of the worse one."""
    winner, loser = pair_of(row, reader)
    return length(row, winner) - length(row, loser)


def length(row: PreferenceRow, place: int) -> int:
    """Return the number of characters of a response."""
    return sum(len(message.content) for message in row.responses[place])

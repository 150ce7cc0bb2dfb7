"""What a transform of rows is, and the parts that transforms share."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

from pl_prefopt.errors import DataError, listed
from pl_prefopt.rows import Columns, PreferenceRow, Value

Outcomes: TypeAlias = Iterator[tuple[int, PreferenceRow | None]]
"""The rows that come out: the number of the row that each is made of, and ``None`` for that row itself."""


class RowTransform(ABC):
    """Leaves rows out, changes them, or makes several of one.

    A transform is a frozen dataclass whose fields are its settings. It goes through the rows as often as it
    needs to, and reads each from disk: it should not keep them.
    """

    reads_held_out: ClassVar[bool] = False
    """Whether it compares rows with those of the other splits."""

    @abstractmethod
    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        """Return what comes out.

        Args:
            rows: the rows of the split.
            held_out: the rows of the other splits.

        Raises:
            DataError: naming a row that it can't work on.
        """

    @property
    def name(self) -> str:
        """Its name and settings, for reports."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return f"{type(self).__name__}({settings})"

    @property
    def fingerprint(self) -> str:
        """A string that changes whenever the class, its module's code or a setting does."""
        kind = type(self)
        try:
            code = inspect.getsource(inspect.getmodule(kind) or kind)
        except (OSError, TypeError):  # a class without a file, such as one from an interactive session
            code = ""
        digest = hashlib.blake2b(code.encode(), digest_size=8).hexdigest()
        return f"{kind.__module__}.{kind.__qualname__}{self._settings()!r}-{digest}"

    def _settings(self) -> dict[str, object]:
        if not dataclasses.is_dataclass(self):
            return dict(vars(self))
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}


class Change(NamedTuple):
    """What a transform did.

    Attributes:
        name: its name and settings.
        before: rows that went in.
        after: rows that came out.
        removed: rows of which nothing came out.
        changed: rows of which something else came out.
    """

    name: str
    before: int
    after: int
    removed: int
    changed: int

    def __str__(self) -> str:
        """Return the line that is printed."""
        return (
            f"{self.name}: {self.before} rows -> {self.after}, {self.removed} removed, {self.changed} changed"
        )


# -- pairs


class Pair(NamedTuple):
    """The places of a row's two responses."""

    winner: int
    loser: int


def pair_of(row: PreferenceRow, reader: str) -> Pair:
    """Return the places of the better and the worse response.

    Raises:
        DataError: if the row is no pair.
    """
    scores = row.scores
    if scores is None or len(scores) != 2 or scores[0] == scores[1]:
        found = "no scores" if scores is None else f"{len(scores)} with the scores {listed(map(str, scores))}"
        raise DataError(
            f"{reader} needs rows of two responses with different scores, got {found} in "
            f"{row.origin or 'a row'}: make pairs first, with AllPairs or BestAgainstRest."
        )
    return Pair(0, 1) if scores[0] > scores[1] else Pair(1, 0)


def pair_number(row: PreferenceRow, column: str, reader: str) -> float:
    """Return a column's number of a pair: of one value per response, the winner's minus the loser's.

    Raises:
        DataError: if the row is no pair or has no such number.
    """
    winner, loser = pair_of(row, reader)
    value = row.columns.get(column)
    if isinstance(value, tuple):
        return _number(value[winner], row, column, reader) - _number(value[loser], row, column, reader)
    return _number(value, row, column, reader)


def row_number(row: PreferenceRow, column: str, reader: str) -> float:
    """Return a column's one number of a row.

    Raises:
        DataError: if there is none.
    """
    return _number(row.columns.get(column), row, column, reader)


def response_numbers(row: PreferenceRow, column: str, reader: str) -> list[float]:
    """Return a column's number of each response.

    Raises:
        DataError: if there are none.
    """
    value = row.columns.get(column)
    if not isinstance(value, tuple):
        raise DataError(
            f"{reader} needs one number per response in the column '{column}', got {_shown(value)} in "
            f"{row.origin or 'a row'}."
        )
    return [_number(one, row, column, reader) for one in value]


def _number(value: object, row: PreferenceRow, column: str, reader: str) -> float:
    if not isinstance(value, int | float):
        raise DataError(
            f"{reader} needs a number in the column '{column}', got {_shown(value)} in "
            f"{row.origin or 'a row'}: add one, or map another column to it with `columns`."
        )
    return float(value)


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)


def score_gap(row: PreferenceRow, reader: str) -> float:
    """Return the highest minus the lowest score of a graded row.

    Raises:
        DataError: if its scores are no grades.
    """
    if row.scores is None or not row.graded:
        raise DataError(
            f"{reader} needs graded scores, but {row.origin or 'a row'} says only which response is better."
        )
    return max(row.scores) - min(row.scores)


def with_columns(row: PreferenceRow, values: Mapping[str, Value]) -> PreferenceRow:
    """Return the row with columns added or replaced."""
    return dataclasses.replace(row, columns=Columns({**row.columns, **values}))


def take(
    row: PreferenceRow, places: Sequence[int], scores: tuple[float, ...] | None, *, graded: bool
) -> PreferenceRow:
    """Return the row with some of its responses, in the order of ``places``, and other scores."""
    columns = {
        name: tuple(value[place] for place in places) if isinstance(value, tuple) else value
        for name, value in row.columns.items()
    }
    return dataclasses.replace(
        row,
        responses=tuple(row.responses[place] for place in places),
        scores=scores,
        graded=graded,
        columns=Columns(columns),
    )


def keep(numbers: Iterator[int]) -> Outcomes:
    """Return rows as they are."""
    for number in numbers:
        yield number, None

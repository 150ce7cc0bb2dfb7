"""Orders of the training rows as settings, for curricula: which rows come first in an epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.errors import ContractError, DataError
from pl_prefopt.rows import PreferenceRow, Value


class RowOrder(ABC):
    """Gives each training row a number by which an epoch goes through them.

    Rows with equal numbers are shuffled from epoch to epoch.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """The extra columns that every training row must have: by default none."""
        return ()

    @abstractmethod
    def keys(self, dataset: PreferenceDataset) -> npt.NDArray[np.float64]:
        """Return a finite number per row; low ones come first.

        Raises:
            ContractError: if the rows have no order of this kind.
            DataError: naming a row that can't be placed.
        """


@dataclass(frozen=True)
class ByScoreGap(RowOrder):
    """By the difference of a row's highest and lowest score: how easy it is to tell them apart.

    Curri-DPO (Pattnaik et al., arXiv 2403.07230) goes from the largest gap to the smallest.

    Args:
        descending: whether the largest gap, the easiest row, comes first.
    """

    descending: bool = True

    def keys(self, dataset: PreferenceDataset) -> npt.NDArray[np.float64]:
        """Return the gaps. Rows of bare labels have none and are refused."""
        gaps = [_score_gap(row) for row in dataset.rows]
        return _signed(gaps, descending=self.descending)


@dataclass(frozen=True)
class ByColumn(RowOrder):
    """By an extra column with one number per row, such as a difficulty.

    Args:
        column: its name.
        descending: whether the largest number comes first.
    """

    column: str
    descending: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def keys(self, dataset: PreferenceDataset) -> npt.NDArray[np.float64]:
        """Return the column's numbers."""
        values = dataset.column(self.column)
        if any(isinstance(value, tuple) for value in values):
            raise ContractError(
                f"data.order expects one number per row in the column '{self.column}', but it has one per "
                "response: use pl_prefopt.data.ByColumnGap."
            )
        numbers = (_number(value, self.column, row) for value, row in zip(values, dataset.rows, strict=True))
        return _signed(numbers, descending=self.descending)


@dataclass(frozen=True)
class ByColumnGap(RowOrder):
    """By the gap of an extra column with one number per response: the best scored one's minus the worst's.

    With a model's rewards as the column it is the implicit-reward gap, negative where the model is wrong.
    Responses that share the best or the worst score are averaged.

    Args:
        column: its name.
        descending: whether the largest gap comes first.
    """

    column: str
    descending: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def keys(self, dataset: PreferenceDataset) -> npt.NDArray[np.float64]:
        """Return the gaps."""
        gaps = [
            self._gap(value, row)
            for value, row in zip(dataset.column(self.column), dataset.rows, strict=True)
        ]
        return _signed(gaps, descending=self.descending)

    def _gap(self, value: Value, row: PreferenceRow) -> float:
        if not isinstance(value, tuple):
            raise ContractError(
                f"data.order expects one number per response in the column '{self.column}', but it has one "
                "per row: use pl_prefopt.data.ByColumn."
            )
        if not row.scores or min(row.scores) == max(row.scores):
            raise DataError(
                f"data.order by the column '{self.column}' needs a best and a worst response in each row, "
                f"but {row.origin or 'a row'} has none: remove the row, or leave data.order out."
            )
        numbers = [_number(each, self.column, row) for each in value]
        best, worst = (
            [number for number, score in zip(numbers, row.scores, strict=True) if score == end]
            for end in (max(row.scores), min(row.scores))
        )
        return sum(best) / len(best) - sum(worst) / len(worst)


def _score_gap(row: PreferenceRow) -> float:
    if not row.scores or not row.graded:
        raise DataError(
            "data.order by ByScoreGap needs scores whose differences mean something in each row, but "
            f"{row.origin or 'a row'} has none: add 'scores', or use pl_prefopt.data.ByColumn."
        )
    return max(row.scores) - min(row.scores)


def _number(value: object, column: str, row: PreferenceRow) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"data.order expects finite numbers in the column '{column}', but {row.origin or 'a row'} has "
            f"{value!r}: correct the data, or name another column."
        )
    return float(value)


def _signed(numbers: Iterable[float] | Sequence[float], *, descending: bool) -> npt.NDArray[np.float64]:
    keys = np.fromiter(numbers, dtype=np.float64)
    return -keys if descending else keys

"""Checks that rows have the required columns, made before tokenisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.columns import KIND_WORDS
from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.data.formats import LAYOUT_NAMES
from pl_prefopt.data.store import RowStore
from pl_prefopt.errors import ContractError, DataError, listed


def require_columns(
    store: RowStore, numbers: npt.NDArray[np.int64] | None, asked: Mapping[str, str], title: str
) -> None:
    """Raise if rows lack a required column.

    Args:
        store: the rows of a source.
        numbers: the row numbers that are used; all if ``None``.
        asked: maps each required column to the component that reads it.
        title: the name of the rows in messages, such as ``"train (pairs.jsonl)"``.

    Raises:
        ContractError: if there is no such column.
        DataError: naming the row, if a value is missing or can't be used.
    """
    for name, reader in asked.items():
        needs = f"{reader} needs the column '{name}'"
        info = store.columns.get(name)
        if info is None:
            if name in LAYOUT_NAMES:
                raise ContractError(
                    f"{needs}, but that name belongs to a layout: copy the column under another name."
                )
            raise ContractError(
                f"{needs}, but {title} has no such column; its columns are {listed(store.names)}: add it, or "
                "map another column to it with data.columns."
            )
        if info.problem:
            raise DataError(f"{needs}, but that of {title} can't be used: {info.problem}; fix the rows.")
        if info.missing:
            used = range(len(store.rows)) if numbers is None else numbers.tolist()
            _require_values(store, used, name, needs)


def _require_values(store: RowStore, numbers: Iterable[int], name: str, needs: str) -> None:
    for number in numbers:
        value = store.rows.columns.of(number)[name]
        if value is None or (isinstance(value, tuple) and None in value):
            raise DataError(
                f"{needs} in each row, but {store.rows[number].origin} has no value: add one, or remove the "
                "row."
            )


def require_same_kinds(datasets: Mapping[str, PreferenceDataset]) -> None:
    """Raise a ``DataError`` if a column in batches has different types in two splits."""
    first: dict[str, tuple[str, str]] = {}
    for split, rows in datasets.items():
        for name, info in rows.columns.items():
            words = ("a list of " if info.per_response else "") + KIND_WORDS[info.kind]
            before, there = first.setdefault(name, (words, split))
            if words != before:
                raise DataError(
                    f"the column '{name}' holds {before} in the {there} rows, but {words} in the {split} "
                    "rows: give it one type."
                )

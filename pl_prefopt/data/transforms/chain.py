"""Applying transforms one after the other, each with its rows and its counts in the cache."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.arrow import StoredRows
from pl_prefopt.data.cache import Cache, damaged
from pl_prefopt.data.store import RowStore, rewrite_rows
from pl_prefopt.data.transforms.base import Change, RowTransform
from pl_prefopt.rows import PreferenceRow

_CHANGE_FILE, _PARENTS_FILE = "change.json", "parents.npy"


class Transformed(NamedTuple):
    """Rows after all transforms.

    Attributes:
        store: the rows.
        parents: int64 [rows], the number of the row that each is made of, before any transform.
        changes: what each transform did.
    """

    store: RowStore
    parents: npt.NDArray[np.int64]
    changes: list[Change]


def transform_rows(
    cache: Cache,
    store: RowStore,
    transforms: Sequence[RowTransform],
    *,
    numbers: npt.NDArray[np.int64] | None = None,
    held_out: Sequence[RowStore | StoredRows] = (),
    held_out_key: object = None,
    title: str = "",
) -> Transformed:
    """Apply transforms to rows.

    Args:
        cache: keeps the rows after each transform.
        store: the rows.
        transforms: the transforms, in order.
        numbers: the row numbers to start from; all rows by default.
        held_out: the rows of other splits, with which some transforms compare.
        held_out_key: everything that determines them.
        title: the name of the rows in messages.

    Raises:
        DataError: if a transform can't work on a row, or leaves none.
    """
    others = _Joined([one.rows if isinstance(one, RowStore) else one for one in held_out])
    parents = np.arange(len(store.rows)) if numbers is None else numbers
    rows = store.rows if numbers is None else store.rows.subset(numbers)
    key: tuple[object, ...] = (
        title,
        store.content,
        store.columns_content,
        None if numbers is None else numbers.tobytes(),
    )
    changes = []
    for transform in transforms:
        key = (key, transform.fingerprint, held_out_key if transform.reads_held_out else None)
        made, folder = rewrite_rows(cache, key, _Step(transform, rows, others), transform.name)
        # Names and problems are those of the source.
        store = made._replace(
            names=[*dict.fromkeys([*store.names, *made.names])],
            skipped=store.skipped,
            problems=store.problems,
            joined=store.joined,
        )
        rows = store.rows
        own, change = _read(folder)
        parents = parents[own]
        changes.append(change)
    return Transformed(store, parents, changes)


class _Joined(Sequence[PreferenceRow]):
    """The rows of several sequences."""

    def __init__(self, parts: Sequence[StoredRows]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: object) -> object:  # type: ignore[override]
        assert isinstance(index, int)
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


class _Step:
    """Makes the rows of one transform, and writes which rows they are made of."""

    def __init__(self, transform: RowTransform, rows: StoredRows, held_out: Sequence[PreferenceRow]) -> None:
        self.transform, self.rows, self.held_out = transform, rows, held_out

    def __call__(self, folder: Path) -> Iterator[PreferenceRow]:
        parents, changed = [], set()
        for number, row in self.transform.apply(self.rows, self.held_out):
            parents.append(number)
            if row is not None:
                changed.add(number)
            yield self.rows[number] if row is None else row
        before = len(self.rows)
        change = Change(self.transform.name, before, len(parents), before - len(set(parents)), len(changed))
        (folder / _CHANGE_FILE).write_text(json.dumps(change), encoding="utf-8")
        content = io.BytesIO()
        np.save(content, np.asarray(parents, dtype=np.int64))
        (folder / _PARENTS_FILE).write_bytes(content.getvalue())


def _read(folder: Path) -> tuple[npt.NDArray[np.int64], Change]:
    try:
        parents: npt.NDArray[np.int64] = np.load(folder / _PARENTS_FILE, allow_pickle=False)
        change = Change(*json.loads((folder / _CHANGE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / _CHANGE_FILE, error) from error
    return parents, change

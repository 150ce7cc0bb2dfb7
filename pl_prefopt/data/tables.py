"""Memory-mapped Arrow files, which open at once and are shared between worker processes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pl_prefopt.data.cache import damaged

ROWS_PER_BLOCK = 1000
"""Rows per record batch."""


def write_table(path: Path, schema: Any, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records of ``schema`` to an Arrow file, block by block."""
    records = iter(records)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while block := list(itertools.islice(records, ROWS_PER_BLOCK)):
            writer.write_batch(pa.RecordBatch.from_pylist(block, schema=schema))


class ReadTable(Protocol):
    """A table with random access to its rows."""

    def __len__(self) -> int: ...

    def cell(self, column: str, row: int) -> Any:
        """Return one ``pyarrow`` scalar."""

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a numeric column as an array."""


class Table:
    """An Arrow file with random access to its rows. Only its path is pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_table": None}

    @property
    def table(self) -> Any:
        """The memory-mapped ``pyarrow.Table``.

        Raises:
            DataError: if the file is corrupt.
        """
        if self._table is None:
            try:
                with pa.ipc.open_file(pa.memory_map(str(self.path))) as reader:
                    self._table = reader.read_all()
            except (pa.ArrowException, OSError) as error:
                raise damaged(self.path, error) from error
        return self._table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def cell(self, column: str, row: int) -> Any:
        """Return one ``pyarrow`` scalar."""
        return self.table[column][row]

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a numeric column as an array."""
        values: npt.NDArray[Any] = self.table[name].to_numpy()
        return values


class JoinedTable:
    """Tables of one schema, one after the other; implements ``ReadTable``."""

    def __init__(self, tables: Sequence[ReadTable]) -> None:
        self._tables = list(tables)
        self._starts = list(itertools.accumulate(map(len, self._tables), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def cell(self, column: str, row: int) -> Any:
        """Return one ``pyarrow`` scalar."""
        part = bisect.bisect_right(self._starts, row) - 1
        return self._tables[part].cell(column, row - self._starts[part])

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a numeric column as an array."""
        return np.concatenate([table.column(name) for table in self._tables])

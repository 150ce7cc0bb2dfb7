"""Rows and tokens as records of Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pl_prefopt.data.columns import ColumnInfo
from pl_prefopt.data.renderer import EncodedRow
from pl_prefopt.data.tables import ReadTable, Table
from pl_prefopt.rows import Columns, Message, PreferenceRow, Value

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("more", pa.string())]))
ROWS_SCHEMA = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("responses", pa.list_(_MESSAGES)),
        ("scores", pa.list_(pa.float64())),
        ("graded", pa.bool_()),
        ("origin", pa.string()),
        ("source", pa.string()),
        ("template_args", pa.string()),
    ]
)
TOKENS_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.list_(pa.int32()))),
        ("counted", pa.list_(pa.list_(pa.bool_()))),
        ("prompt_cut", pa.int32()),
        ("response_cuts", pa.list_(pa.int32())),
        ("length", pa.int64()),
    ]
)


class RowColumns(Protocol):
    """The extra columns of rows, by row number; ``columns.StoredColumns`` implements it."""

    @property
    def infos(self) -> Mapping[str, ColumnInfo]:
        """The types of the columns that are kept."""

    def of(self, number: int) -> Columns:
        """Return the extra columns of a row, with ``None`` for missing values."""


class Parts(NamedTuple):
    """The sources of rows.

    Attributes:
        names: the name of each source; empty for one without a name.
        numbers: int [rows of the table], the number of each row's source.
    """

    names: Sequence[str]
    numbers: npt.NDArray[np.int64]


class StoredRows(Sequence[PreferenceRow]):
    """All or a selection of the rows on disk, as a sequence.

    Args:
        table: a table of ``ROWS_SCHEMA``.
        columns: the extra columns of the table's rows.
        numbers: the row numbers to select, in this order; all rows by default.
        parts: the sources of the table's rows; one without a name by default. Its name is the ``source`` of
            rows that have none of their own.

    Attributes:
        table: the table.
        columns: the extra columns.
    """

    def __init__(
        self,
        table: ReadTable,
        columns: RowColumns,
        numbers: npt.NDArray[np.int64] | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.table, self.columns = table, columns
        self._numbers = np.arange(len(table)) if numbers is None else numbers
        self._parts = Parts(("",), np.zeros(len(table), dtype=np.int64)) if parts is None else parts

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the sources; empty strings for those without one."""
        return tuple(self._parts.names)

    @property
    def part_numbers(self) -> npt.NDArray[np.int64]:
        """The number of each row's source, int64 [rows]."""
        return self._parts.numbers[self._numbers]

    def with_parts(self, parts: Parts) -> StoredRows:
        """Return these rows with other sources."""
        return StoredRows(self.table, self.columns, self._numbers, parts)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PreferenceRow: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...
    def __getitem__(self, index: int | slice) -> PreferenceRow | StoredRows:
        """Return one row, or a sequence of the rows in a slice."""
        if isinstance(index, slice):
            return StoredRows(self.table, self.columns, self._numbers[index], self._parts)
        number = int(self._numbers[index])
        fields = {name: self.table.cell(name, number).as_py() for name in ROWS_SCHEMA.names}
        return PreferenceRow(
            prompt=_messages(fields["prompt"]),
            responses=tuple(_messages(response) for response in fields["responses"]),
            scores=None if fields["scores"] is None else tuple(fields["scores"]),
            graded=fields["graded"],
            origin=fields["origin"],
            source=fields["source"] or self._part_name(number),
            template_args=fields["template_args"] or "",
            columns=self.columns.of(number),
        )

    def column(self, name: str) -> list[Value]:
        """Return the values of an extra column for all these rows."""
        return [self.columns.of(number)[name] for number in self._numbers.tolist()]

    def subset(self, positions: npt.NDArray[np.int64]) -> StoredRows:
        """Return the rows at these positions of this sequence."""
        return StoredRows(self.table, self.columns, self._numbers[positions], self._parts)

    def _part_name(self, number: int) -> str:
        return self._parts.names[int(self._parts.numbers[number])]


def _messages(items: list[dict[str, str | None]]) -> tuple[Message, ...]:
    return tuple(Message(item["role"] or "", item["content"] or "", item["more"] or "") for item in items)


def _records(messages: Sequence[Message]) -> list[dict[str, str]]:
    # What is empty is left out, so that hashes of rows without it stay what they were.
    return [
        {name: text for name, text in message._asdict().items() if text or name != "more"}
        for message in messages
    ]


def row_record(row: PreferenceRow) -> dict[str, Any]:
    """Return a row as a record of ``ROWS_SCHEMA``."""
    return {
        "prompt": _records(row.prompt),
        "responses": [_records(response) for response in row.responses],
        "scores": row.scores,
        "graded": row.graded,
        "origin": row.origin,
        "source": row.source,
        **({"template_args": row.template_args} if row.template_args else {}),
    }


def tokens_record(number: int, encoded: EncodedRow) -> dict[str, Any]:
    """Return an encoded row as a record of ``TOKENS_SCHEMA``; ``number`` is the position of its row."""
    fields = ("prompt_ids", "response_ids", "counted", "prompt_cut", "response_cuts", "length")
    return {"row": number, **{name: getattr(encoded, name) for name in fields}}


def read_tokens(table: Table, position: int) -> EncodedRow:
    """Return the encoded row at a position of a table of ``TOKENS_SCHEMA``, without copying its tokens."""
    return EncodedRow(
        prompt_ids=table.cell("prompt_ids", position).values.to_numpy(),
        response_ids=list(_arrays(table.cell("response_ids", position).values)),
        counted=list(_arrays(table.cell("counted", position).values)),
        prompt_cut=table.cell("prompt_cut", position).as_py(),
        response_cuts=table.cell("response_cuts", position).as_py(),
    )


def _arrays(lists: Any) -> Iterator[npt.NDArray[Any]]:
    for item in lists:
        yield item.values.to_numpy(zero_copy_only=False)

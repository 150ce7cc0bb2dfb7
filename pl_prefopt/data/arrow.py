"""Rows and tokens as records of Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pl_prefopt.data.columns import StoredColumns
from pl_prefopt.data.renderer import EncodedRow
from pl_prefopt.data.tables import Table
from pl_prefopt.rows import Message, PreferenceRow, Value

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


class StoredRows(Sequence[PreferenceRow]):
    """All or a selection of the rows on disk, as a sequence.

    Args:
        table: a table of ``ROWS_SCHEMA``.
        columns: the extra columns of the table's rows.
        numbers: the row numbers to select, in this order; all rows by default.

    Attributes:
        columns: the extra columns.
    """

    def __init__(
        self, table: Table, columns: StoredColumns, numbers: npt.NDArray[np.int64] | None = None
    ) -> None:
        self._table, self.columns = table, columns
        self._numbers = np.arange(len(table)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PreferenceRow: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...
    def __getitem__(self, index: int | slice) -> PreferenceRow | StoredRows:
        """Return one row, or a sequence of the rows in a slice."""
        if isinstance(index, slice):
            return StoredRows(self._table, self.columns, self._numbers[index])
        number = int(self._numbers[index])
        fields = {name: self._table.cell(name, number).as_py() for name in ROWS_SCHEMA.names}
        return PreferenceRow(
            prompt=_messages(fields["prompt"]),
            responses=tuple(_messages(response) for response in fields["responses"]),
            scores=None if fields["scores"] is None else tuple(fields["scores"]),
            graded=fields["graded"],
            origin=fields["origin"],
            source=fields["source"],
            template_args=fields["template_args"] or "",
            columns=self.columns.of(number),
        )

    def column(self, name: str) -> list[Value]:
        """Return the values of an extra column for all these rows."""
        return [self.columns.of(number)[name] for number in self._numbers.tolist()]

    def subset(self, positions: npt.NDArray[np.int64]) -> StoredRows:
        """Return the rows at these positions of this sequence."""
        return StoredRows(self._table, self.columns, self._numbers[positions])


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

"""The extra columns of a source: their types, which of them can't be kept, and their values in a batch."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import torch

from pl_prefopt.data.formats import Converted
from pl_prefopt.data.names import Names
from pl_prefopt.data.tables import ROWS_PER_BLOCK, Table
from pl_prefopt.errors import listed, printable
from pl_prefopt.rows import Columns, PreferenceRow, Scalar, Value
from pl_prefopt.types import Column

Kind: TypeAlias = Literal["nothing", "text", "flag", "integer", "number"]

MOST_COLUMNS = 256
"""The maximum number of extra columns kept per source; rows whose keys are data could have any number."""

_SHOWN = 20
KIND_WORDS: Mapping[Kind, str] = {
    "nothing": "nothing",
    "text": "text",
    "flag": "true or false",
    "integer": "a number",
    "number": "a number",
}
_DTYPES: Mapping[Kind, torch.dtype] = {
    "flag": torch.bool,
    "integer": torch.int64,
    "number": torch.float64,
}
_EXACT = 2**53  # float64 represents every integer up to here exactly
_SCHEMA = pa.schema([("columns", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnInfo:
    """The type of a source's column.

    Attributes:
        kind: the type of its values; a mix of integers and decimal numbers is ``number``.
        per_response: whether each row has a list with one value per response.
        missing: the number of rows without a value, or without a value for some response.
        problem: why the column can't be kept; empty if it can.
        read: whether it was also read for the prompt or the scores of some row, or names the row's source.
        large: the origin of the first integer above 2^53; empty without such.
    """

    kind: Kind = "nothing"
    per_response: bool = False
    missing: int = 0
    problem: str = ""
    read: bool = False
    large: str = ""

    def typed(self, value: Any) -> Value:
        """Return a value read from JSON, converted to the column's type."""
        if isinstance(value, list | tuple):
            return tuple(self._scalar(item) for item in value)
        return self._scalar(value)

    def _scalar(self, value: Any) -> Scalar:
        return float(value) if self.kind == "number" and value is not None else value


class ColumnTally:
    """Collects the columns of a source row by row.

    Attributes:
        names: all columns seen so far, in order of first appearance.
    """

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self._rows, self._others = 0, False
        self._found: dict[str, _Found] = {}
        self._of_layouts: set[str] = set()  # those that the layout of some row read

    def add(self, fields: Mapping[str, Any], converted: Converted, origin: str) -> None:
        """Count the columns of one usable row.

        Args:
            fields: the raw row.
            converted: what it was converted to.
            origin: file and row number, for messages.
        """
        self._rows += 1
        if not fields.keys() <= self.names.keys() and len(self.names) < MOST_COLUMNS:
            self.names |= dict.fromkeys(fields)
        if len(self._of_layouts) < MOST_COLUMNS:
            self._of_layouts |= fields.keys() - {name for name, _, _ in converted.further}
        left_out = ((name, True, "a part that its layout doesn't read") for name in converted.left_out)
        for name, value, reason in itertools.chain(converted.further, left_out):
            if name not in self._found:
                if len(self._found) == MOST_COLUMNS:
                    self._others = True
                    continue
                self._found[name] = _Found()
            if value is not None:
                self._found[name].add(value, reason, origin)
                self._found[name].read |= name in converted.read

    def finish(self) -> dict[str, ColumnInfo]:
        """Return the columns found, by name."""
        others = {"all others": ColumnInfo(problem=f"at most {MOST_COLUMNS} are")} if self._others else {}
        for name in self._of_layouts & self._found.keys():
            # Where no other row has a value, a null of another layout is no unused column.
            self._found[name].read |= self._found[name].kind == "nothing" and not self._found[name].problem
        return {name: found.info(self._rows) for name, found in self._found.items()} | others


@dataclass(slots=True)
class _Found:
    """A column as seen so far: its type, where it first appeared, and what is wrong with it."""

    kind: Kind = "nothing"
    per_response: bool | None = None
    origin: str = ""
    complete: int = 0
    large: str = ""  # origin of the first integer that float64 can't represent
    problem: str = ""
    alike: int = -1  # the number of other rows with an unusable value
    read: bool = False

    def add(self, value: Any, reason: str, origin: str) -> None:
        if reason:
            self.problem = self.problem or f"{reason} in {origin}"
            self.alike += 1
        if self.problem:
            return
        several = isinstance(value, list | tuple)
        values = value if several else [value]
        if self.per_response is None:
            self.per_response, self.origin = several, origin
        elif self.per_response != several:
            now, before = ("a list", "one value") if several else ("one value", "a list")
            self.problem = f"{now} in {origin}, but {before} in {self.origin}"
        self._take_kinds(values, origin)
        self.complete += None not in values

    def _take_kinds(self, values: Sequence[Scalar], origin: str) -> None:
        for value in values:
            kind = _kind(value)
            if isinstance(value, int) and abs(value) > _EXACT:
                self.large = self.large or origin
            if self.kind in (kind, "nothing"):
                self.kind = kind
            elif {self.kind, kind} == {"integer", "number"}:
                self.kind = "number"
            elif kind != "nothing":
                where = "there" if origin == self.origin else f"in {self.origin}"
                self.problem = f"{KIND_WORDS[kind]} in {origin}, but {KIND_WORDS[self.kind]} {where}"
                return

    def info(self, rows: int) -> ColumnInfo:
        missing = rows - self.complete
        problem = self.problem + (f" and {self.alike} more" if self.alike > 0 else "")
        return ColumnInfo(
            kind=self.kind,
            per_response=bool(self.per_response),
            missing=missing,
            problem=problem or _too_large(self.kind, missing, self.large),
            read=self.read,
            large=self.large,
        )


def _too_large(kind: Kind, missing: int, large: str) -> str:
    """Return why integers of a column can't be kept, or an empty string if they can."""
    if not large or not (kind == "number" or missing):
        return ""
    others = "decimal numbers" if kind == "number" else "missing values"
    return f"{others} together with an integer above 2^53 in {large}, which float64 can't represent"


def _kind(value: Scalar) -> Kind:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, str):
        return "text"
    return "integer" if isinstance(value, int) else "number"


# -- of several sources


def joined_infos(
    found: Sequence[tuple[Mapping[str, ColumnInfo], int]], labels: Sequence[str]
) -> dict[str, ColumnInfo]:
    """Return the types of the columns of several sources together.

    Args:
        found: the columns and the number of rows of each source.
        labels: the names of the sources, for messages.
    """
    rows = sum(count for _, count in found)
    joined: dict[str, ColumnInfo] = {}
    first: dict[str, str] = {}
    present: dict[str, int] = {}
    for (infos, count), label in zip(found, labels, strict=True):
        for name, info in infos.items():
            before, there = joined.get(name), first.setdefault(name, label)
            joined[name] = info if before is None else _joined(before, info, f"{label}, but ", f" in {there}")
            present[name] = present.get(name, 0) + count - info.missing
    return {name: _with_missing(info, rows - present[name]) for name, info in joined.items()}


def _joined(before: ColumnInfo, info: ColumnInfo, here: str, there: str) -> ColumnInfo:
    kinds = {before.kind, info.kind} - {"nothing"}
    kind: Kind = "number" if kinds == {"integer", "number"} else next(iter(kinds), "nothing")
    problem = before.problem or info.problem
    if not problem and len(kinds) > 1 and kind != "number":
        problem = f"{KIND_WORDS[info.kind]} in {here}{KIND_WORDS[before.kind]}{there}"
    if not problem and "nothing" not in (before.kind, info.kind) and info.per_response != before.per_response:
        words = {True: "a list", False: "one value"}
        problem = f"{words[info.per_response]} in {here}{words[before.per_response]}{there}"
    return ColumnInfo(
        kind=kind,
        per_response=info.per_response or before.per_response,
        problem=problem,
        read=before.read or info.read,
        large=before.large or info.large,
    )


def _with_missing(info: ColumnInfo, missing: int) -> ColumnInfo:
    problem = info.problem or _too_large(info.kind, missing, info.large)
    return dataclasses.replace(info, missing=missing, problem=problem)


# -- on disk


class ColumnsWriter:
    """Writes the extra columns of each row as JSON to an Arrow file, created only if some row has any.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._block: list[str | None] = []
        self._without = 0  # rows before the first one that has columns
        self._writer: Any = None
        self._sink: Any = None

    def add(self, row: PreferenceRow) -> str | None:
        """Write one row's columns and return them as written."""
        text = None
        if row.columns:
            held = {name: value for name, value in row.columns.items() if value is not None}
            text = json.dumps(held) if held else None
        if text is None and self._writer is None and not self._block:
            self._without += 1
            return None
        self._block.append(text)
        if len(self._block) == ROWS_PER_BLOCK:
            self._write()
        return text

    def _write(self) -> None:
        if self._writer is None:
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._sink, _SCHEMA)
            self._block[:0] = [None] * self._without
        self._writer.write_batch(pa.RecordBatch.from_pydict({"columns": self._block}, schema=_SCHEMA))
        self._block = []

    def close(self) -> None:
        """Finish the file."""
        if self._block:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._sink.close()


class StoredColumns:
    """The extra columns of stored rows, by row number.

    Args:
        path: the file that a ``ColumnsWriter`` wrote; missing where no row has extra columns.
        infos: the types of the columns.

    Attributes:
        infos: the types of those that are kept.
    """

    def __init__(self, path: Path, infos: Mapping[str, ColumnInfo]) -> None:
        self.infos = {name: info for name, info in infos.items() if not info.problem}
        self._table = Table(path) if self.infos and path.exists() else None

    def of(self, number: int) -> Columns:
        """Return the extra columns of a row, with ``None`` for missing values."""
        text = None if self._table is None else self._table.cell("columns", number).as_py()
        held = {} if text is None else json.loads(text)
        return Columns({name: info.typed(held.get(name)) for name, info in self.infos.items()})


# -- in a batch


def collate_columns(
    rows: Sequence[PreferenceRow],
    infos: Mapping[str, ColumnInfo],
    responses: int,
    names: Mapping[str, Names],
) -> dict[str, Column]:
    """Return the columns of B rows, see ``PreferenceBatch.columns``.

    Args:
        rows: B rows.
        infos: the columns to return.
        responses: R, the length to which values per response are padded.
        names: the tables of those columns whose values are names; their numbers are returned.
    """
    columns = {name: [row.columns[name] for row in rows] for name in infos}
    return {
        name: names[name].collate(columns[name], responses if info.per_response else None)
        if name in names
        else _collate(columns[name], info, responses)
        for name, info in infos.items()
    }


def _collate(values: Sequence[Value], info: ColumnInfo, responses: int) -> Column:
    if info.kind in ("text", "nothing"):
        return tuple(_texts(value, info, responses) for value in values)
    dtype = torch.float64 if info.missing else _DTYPES[info.kind]
    if not info.per_response:
        return torch.tensor([_number(value) for value in values], dtype=dtype)
    padding = torch.nan if dtype == torch.float64 else 0
    held = torch.full((len(values), responses), padding, dtype=dtype)
    for b, value in enumerate(values):
        if isinstance(value, tuple):
            held[b, : len(value)] = torch.tensor([_number(item) for item in value], dtype=dtype)
    return held


def _texts(value: Any, info: ColumnInfo, responses: int) -> Any:
    """Return a text, or one text per response of the batch, padded with ``None``."""
    if not info.per_response:
        return value
    return (*(value or ()), *[None] * (responses - len(value or ())))


def _number(value: Any) -> float:
    return torch.nan if value is None else value


# -- in messages


def describe_unused(infos: Mapping[str, ColumnInfo], used: Iterable[str]) -> list[str]:
    """Return the lines on unused columns that are printed when a split is ready."""
    unused = {name: info for name, info in infos.items() if name not in set(used) and not info.read}
    kept = sorted(name for name, info in unused.items() if not info.problem)
    lines = [f"columns not used: {listed(kept)}"] if kept else []
    rest = {name: unused[name].problem for name in sorted(unused.keys() - set(kept))}
    return lines + ([describe_unkept(rest)] if rest else [])


def describe_unkept(problems: Mapping[str, str]) -> str:
    """Return the line on columns that can't be kept, by the reasons."""
    found = [f"{printable(name)} ({problem})" for name, problem in problems.items()]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return f"columns that can't be kept: {'; '.join(found[:_SHOWN] + more)}"


def infos_to_json(infos: Mapping[str, ColumnInfo]) -> dict[str, Any]:
    """Return infos for a JSON file."""
    return {name: dataclasses.asdict(info) for name, info in infos.items()}


def infos_from_json(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, ColumnInfo]:
    """Return what ``infos_to_json`` stored."""
    return {name: ColumnInfo(**info) for name, info in stored.items()}

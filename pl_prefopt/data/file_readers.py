"""Reading files row by row: text stays text, and what can't be a row is a bad row or one sentence."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pl_prefopt.data.json_values import parse_json
from pl_prefopt.errors import DataError, first_line, listed, printable
from pl_prefopt.paths import data_suffix

LARGEST_ROW = 64 * 2**20
"""The maximum number of bytes of a row of text: more is a file without line breaks, or a compression bomb."""

_BROKEN = (OSError, EOFError, zlib.error)
"""What reading raises for a file that is truncated, or is not the gzip stream that its name says."""

_TOO_LONG = f"longer than {LARGEST_ROW >> 20} MiB; shorten it, or write one row per line"
ROWS_PER_BLOCK = 256
"""Number of rows of a table that are in memory at a time, apart from the row group that they are from."""

_FIRST_READ = 1 << 16


class Record(NamedTuple):
    """One raw row: its fields, or the problem if it could not be parsed."""

    origin: str
    fields: Mapping[str, Any]
    problem: str = ""


Reader = Callable[[Path, str, Path], Iterator[Record]]
"""Reads a file, given its path, its name in messages and a folder for temporary files."""


def reader_of(path: Path) -> Reader:
    """Return what reads a file, by its suffix.

    Raises:
        DataError: if the suffix is unknown.
    """
    suffix = data_suffix(path)
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise DataError(
            f"expected a file ending in {known} (each also with .gz), got {printable(str(path), limit=200)}; "
            "rename or convert it"
        )
    return READERS[suffix]


def _open_bytes(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


# -- JSON


def _read_lines(path: Path, name: str, scratch: Path) -> Iterator[Record]:
    """Read one JSON object per line, with the line number of an invalid line."""
    del scratch
    with _open_bytes(path) as file:
        for number in itertools.count(1):
            origin = f"{name}, row {number}"
            try:
                line = file.readline(LARGEST_ROW + 1)
                if len(line) > LARGEST_ROW:
                    _skip_line(file)
            except _BROKEN as error:
                raise DataError(
                    f"{origin}: the gzip stream is truncated or corrupt ({error}); fetch the file again"
                ) from error
            if not line:
                return
            if len(line) > LARGEST_ROW:
                yield Record(origin, {}, f"a line {_TOO_LONG}")
            elif line.strip():
                yield _parse_line(line, origin)


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(_FIRST_READ)) and not rest.endswith(b"\n"):
        pass


def _parse_line(line: bytes, origin: str) -> Record:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return Record(origin, {}, f"not UTF-8 (byte 0x{byte:02x} at byte {error.start + 1} of the line)")
    try:
        return _as_record(parse_json(text), origin)
    except ValueError as error:
        return Record(origin, {}, f"invalid JSON ({error})")


def _as_record(value: Any, origin: str) -> Record:
    if not isinstance(value, dict):
        return Record(origin, {}, f"expected a JSON object, got {type(value).__name__}")
    return Record(origin, value)


def _read_json(path: Path, name: str, scratch: Path) -> Iterator[Record]:
    """Read a ``.json`` file: a list of objects, or JSON lines with the wrong suffix."""
    try:
        with _open_bytes(path) as file:
            first = file.read(_FIRST_READ).lstrip(b"\xef\xbb\xbf \t\r\n")
    except _BROKEN as error:
        raise _unreadable(path, name, "json", error) from error
    if not first.startswith(b"["):
        yield from _read_lines(path, name, scratch)
        return
    try:
        with _open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            for number, item in enumerate(_items(text), start=1):
                origin = f"{name}, row {number}"
                try:
                    yield _as_record(parse_json(item), origin)
                except ValueError as error:
                    yield Record(origin, {}, f"invalid JSON ({error})")
    except (ValueError, *_BROKEN) as error:
        raise _unreadable(path, name, "json", error) from error


def _items(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the texts of the items of a JSON list, without reading the whole list.

    Raises:
        ValueError: if it isn't a list, or is incomplete.
    """
    window = _Window(text)
    window.take("[")
    if window.next_character() == "]":
        return
    while True:
        yield window.take_value()
        if window.next_character() == "]":
            return
        window.take(",")


class _Window:
    """A part of a JSON text, which is read on as needed."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._held, self._at = text, "", 0

    def next_character(self) -> str:
        """Return the next character that is no white space, and stay before it; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._read(_FIRST_READ):
                return ""

    def take(self, character: str) -> None:
        """Go past a character that must come next."""
        found = self.next_character()
        if found != character:
            raise ValueError(f"expected '{character}', got {repr(found) if found else 'the end of the file'}")
        self._at += 1

    def take_value(self) -> str:
        """Return the text of the next value, and go past it."""
        self.next_character()
        size = _FIRST_READ
        while True:
            try:
                end = _DECODER.raw_decode(self._held, self._at)[1]
            except RecursionError:
                raise ValueError("an item is nested too deeply") from None
            except ValueError:
                if not self._read(size):
                    raise
            else:
                if end < len(self._held) or not self._read(size):  # a number at the end might go on
                    value, self._at = self._held[self._at : end], end
                    return value
            if len(self._held) > LARGEST_ROW:
                raise ValueError(f"an item is {_TOO_LONG}")
            size *= 2

    def _read(self, size: int) -> bool:
        more = self._text.read(size)
        self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)


_DECODER = json.JSONDecoder()


# -- CSV


def _read_csv(path: Path, name: str, scratch: Path) -> Iterator[Record]:
    """Read a CSV file. Every cell is read as text: ``007`` is not a number, and ``NA`` is not missing."""
    del scratch
    limit = csv.field_size_limit(LARGEST_ROW)
    try:
        # Bytes that are not UTF-8 become surrogates, which show the rows that have them.
        with (
            _open_bytes(path) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
        ):
            rows = csv.reader(text, strict=True)
            yield from _csv_records(rows, path, name)
    except (csv.Error, *_BROKEN) as error:
        raise _unreadable(path, name, "csv", error) from error
    finally:
        csv.field_size_limit(limit)


def _csv_records(rows: Any, path: Path, name: str) -> Iterator[Record]:
    header: list[str] = next((cells for cells in rows if cells), [])
    if not _is_text("".join(header)):
        raise _unreadable(path, name, "csv", ValueError("the header is not UTF-8"))
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: the header has {listed(repeated)} twice; rename one of the columns")
    for number, cells in enumerate(filter(None, rows), start=1):
        origin = f"{name}, row {number}"
        if len(cells) != len(header):
            yield Record(
                origin,
                {},
                f"{len(cells)} cells for {len(header)} columns; quote cells that have commas in them",
            )
        elif not _is_text("".join(cells)):
            yield Record(origin, {}, f"not UTF-8 (line {rows.line_num})")
        else:
            yield _csv_record(dict(zip(header, cells, strict=True)), origin)


def _csv_record(cells: Mapping[str, str], origin: str) -> Record:
    try:
        return Record(origin, {column: _csv_cell(cell) for column, cell in cells.items()})
    except ValueError as error:
        return Record(origin, {}, f"invalid JSON in a cell ({error})")


def _csv_cell(cell: str) -> Any:
    """Return a cell's value: a list or object if it is one in JSON; ``None`` if it is empty."""
    if not cell:
        return None
    if (cell[0], cell[-1]) not in (("[", "]"), ("{", "}")):
        return cell
    try:
        json.loads(cell)
    except ValueError:
        return cell
    except RecursionError:
        pass
    return parse_json(cell)


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)


# -- Parquet


def _read_parquet(path: Path, name: str, scratch: Path) -> Iterator[Record]:
    """Read a Parquet file, decompressing it first if it is gzipped."""
    try:
        if not path.name.lower().endswith(".gz"):
            yield from _parquet_records(path, name)
            return
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            unpacked = Path(folder) / "unpacked.parquet"
            with _open_bytes(path) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file)
            yield from _parquet_records(unpacked, name)
    except (pa.ArrowException, *_BROKEN) as error:
        raise _unreadable(path, name, "parquet", error) from error


def _parquet_records(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as table:
        repeated = sorted(
            {one for one in table.schema_arrow.names if table.schema_arrow.names.count(one) > 1}
        )
        if repeated:
            raise DataError(f"{name} has the column {listed(repeated)} twice; rename one of them")
        number = 0
        for block in table.iter_batches(batch_size=ROWS_PER_BLOCK):
            for index in range(len(block)):
                number += 1
                yield record_of(block.slice(index, 1), f"{name}, row {number}")


def record_of(row: Any, origin: str) -> Record:
    """Return the only row of an Arrow table or record batch."""
    return record_from(lambda: row.to_pylist()[0], origin)


def record_from(read: Callable[[], Any], origin: str) -> Record:
    """Return what ``read`` returns as a record, a bad row if it isn't an object or has unreadable values."""
    try:
        return _as_record(read(), origin)
    except UnicodeDecodeError as error:
        return Record(origin, {}, f"not UTF-8 ({error})")
    except RecursionError:
        return Record(origin, {}, "nested too deeply")
    except (ValueError, OverflowError) as error:  # such as dates that Python can't represent
        return Record(origin, {}, f"a value that can't be read ({first_line(error)})")


# -- errors


def _unreadable(path: Path, name: str, kind: str, error: BaseException) -> DataError:
    if kind != "parquet" and (line := _first_undecodable_line(path)):
        return DataError(
            f"{name}, line {line}: not UTF-8; save the file as UTF-8, or as JSONL, where bad rows can be "
            "skipped"
        )
    while error.__cause__ is not None:
        error = error.__cause__
    reason = printable(first_line(error), limit=200)
    where = printable(str(path), limit=200)
    return DataError(f"could not read {where} as {kind} ({reason}); fix it, or save it as JSONL")


def _first_undecodable_line(path: Path) -> int:
    """Return the 1-based number of the first line that is not UTF-8, or 0."""
    try:
        with _open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
    except _BROKEN:
        return 0
    return 0


READERS: Mapping[str, Reader] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

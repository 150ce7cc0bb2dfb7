"""Reading files, folders and hub data sets into raw records with their origin."""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import io
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from pl_prefopt.errors import ConfigError, DataError, first_line, listed, printable, suggest
from pl_prefopt.paths import data_suffix, is_data_path, missing_data


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows of a split come from.

    Attributes:
        path: a file (``.jsonl``, ``.json``, ``.csv``, ``.parquet``, each also with ``.gz``), a folder written
            by ``datasets`` or containing such files, or a data set's name on the hub.
        split: the split of a folder or hub data set.
        name: the configuration of a hub data set.
        columns: columns to rename in this source only, ``{name in the data: expected name}``, such as
            ``{question: prompt}``; ``data.columns`` is applied to the new names.
    """

    path: str
    split: str = "train"
    name: str | None = None
    columns: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | Source) -> Source:
        """Return ``source``, converting a path to a ``Source``."""
        return cls(path=source) if isinstance(source, str) else source

    @property
    def label(self) -> str:
        """The name of the source in messages: the file's or folder's name, or the hub name."""
        return Path(self.path).name if Path(self.path).exists() else self.path


class Record(NamedTuple):
    """One raw row: its fields, or the problem if it could not be parsed."""

    origin: str
    fields: Mapping[str, Any]
    problem: str = ""


class Reading(NamedTuple):
    """An opened source: its records, and a key that changes whenever the content does."""

    content_key: str
    records: Callable[[], Iterator[Record]]


def open_source(source: Source, scratch: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Open ``source``; the rows of a local file or folder are not read yet.

    Args:
        source: what to read.
        scratch: a folder for the conversions of ``datasets``.
        columns: maps our column names to those of the source.

    Raises:
        DataError: if it does not exist.
    """
    found = _find(source, scratch)
    return Reading(found.content_key, lambda: _in_our_names(found.records, source, columns or {}))


def _find(source: Source, scratch: Path) -> Reading:
    path = Path(source.path).expanduser()
    if path.is_file():
        content_key = _hash_files([path])
        read = _file_reader(path)
        return Reading(content_key, lambda: read(path, scratch))
    if path.is_dir():
        content_key = _hash_files(sorted(p for p in path.rglob("*") if p.is_file())) + source.split
        return Reading(content_key, lambda: _read_folder(path, source))
    if is_data_path(source.path):
        raise DataError(missing_data(path))
    table = _load_hub(source)
    return Reading(str(table._fingerprint), lambda: _numbered(table, source.label))


def _hash_files(paths: Iterable[Path]) -> str:
    """Hash names and contents; modification times don't count."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# -- names of columns


def _in_our_names(
    records: Callable[[], Iterator[Record]], source: Source, columns: Mapping[str, str]
) -> Iterator[Record]:
    """Read records with their columns renamed by the source's ``columns`` and then by ``data.columns``."""
    setting = f"the setting columns of {source.label}"
    read = functools.partial(_renamed, records, source.columns, setting) if source.columns else records
    if not columns:
        return read()
    _require(columns, read(), source.label)
    return _renamed(read, {theirs: ours for ours, theirs in columns.items()}, "data.columns")


def check_names(columns: Mapping[str, str]) -> None:
    """Raise a ``ConfigError`` if two of our names are mapped to the same column."""
    ours_of: dict[str, str] = {}
    for ours, theirs in columns.items():
        if theirs in ours_of:
            raise ConfigError(
                f"data.columns maps both '{ours_of[theirs]}' and '{ours}' to the column '{theirs}': remove "
                "one of them."
            )
        ours_of[theirs] = ours


def _require(columns: Mapping[str, str], records: Iterable[Record], label: str) -> None:
    """Raise a ``ConfigError`` if no row has a column of one of these names."""
    names: dict[str, None] = {}
    absent = dict(columns)
    for record in records:
        names |= dict.fromkeys(record.fields)
        absent = {ours: theirs for ours, theirs in absent.items() if theirs not in names}
        if not absent:
            return
    if names:  # an empty source has its own error
        ours, theirs = next(iter(absent.items()))
        raise ConfigError(
            f"data.columns maps '{printable(ours)}' to '{printable(theirs)}', but {label} has no such "
            f"column; its columns are {listed(names)}{suggest(theirs, names)}"
        )


def _renamed(
    records: Callable[[], Iterator[Record]], new_names: Mapping[str, str], setting: str
) -> Iterator[Record]:
    for record in records():
        fields = {new_names.get(name, name): value for name, value in record.fields.items()}
        if len(fields) < len(record.fields):
            fields = _without_clash(record, new_names, setting)
        yield record._replace(fields=fields)


def _without_clash(record: Record, new_names: Mapping[str, str], setting: str) -> dict[str, Any]:
    """Rename the columns of a row that already has a new name; at most one of the two may have a value."""
    fields: dict[str, Any] = {}
    for name, value in record.fields.items():
        ours = new_names.get(name, name)
        if fields.get(ours) is not None and value is not None:
            theirs = next(old for old in record.fields if new_names.get(old) == ours)
            raise ConfigError(
                f"{setting} maps '{printable(ours)}' to '{printable(theirs)}', but {record.origin} already "
                f"has a column '{printable(ours)}': rename one of them in the data, or remove "
                f"'{printable(ours)}' from {setting}."
            )
        fields[ours] = fields.get(ours) if value is None else value
    return fields


# -- files

_BROKEN = (OSError, EOFError, zlib.error)
"""What reading raises for a file that is truncated, or is not the gzip stream that its name says."""

_FileReader = Callable[[Path, Path], Iterator[Record]]


def _file_reader(path: Path) -> _FileReader:
    suffix = data_suffix(path)
    readers: dict[str, _FileReader] = {
        ".jsonl": _read_lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        known = ", ".join(readers)
        raise DataError(
            f"expected a file ending in {known} (each also with .gz), got {path}; rename or convert it"
        )
    return readers[suffix]


def _open_bytes(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _read_lines(path: Path, scratch: Path) -> Iterator[Record]:
    """Read one JSON object per line; unlike ``datasets``, with the line number of an invalid line."""
    del scratch
    with _open_bytes(path) as file:
        for number in itertools.count(1):
            try:
                line = file.readline()
            except _BROKEN as error:
                raise DataError(
                    f"{path.name}, row {number}: the gzip stream is truncated or corrupt ({error}); "
                    "fetch the file again"
                ) from error
            if not line:
                return
            if line.strip():
                yield _parse_line(line, f"{path.name}, row {number}")


def _parse_line(line: bytes, origin: str) -> Record:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return Record(origin, {}, f"not UTF-8 (byte 0x{byte:02x} at byte {error.start + 1} of the line)")
    except (ValueError, RecursionError) as error:
        return Record(origin, {}, f"invalid JSON ({error})")
    if not isinstance(fields, dict):
        return Record(origin, {}, f"expected a JSON object, got {type(fields).__name__}")
    return Record(origin, fields)


def _read_json(path: Path, scratch: Path) -> Iterator[Record]:
    """Read a ``.json`` file: a list of objects, or JSON lines with the wrong suffix."""
    try:
        with _open_bytes(path) as file:
            first = next((line for line in file if line.strip()), b"")
    except _BROKEN as error:
        raise _unreadable(path, "json", error) from error
    if not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        return _read_lines(path, scratch)
    return _read_by_datasets("json", path, scratch)


def _read_parquet(path: Path, scratch: Path) -> Iterator[Record]:
    """Read a Parquet file, decompressing it first if it is gzipped, which ``datasets`` does not do."""
    if not path.name.lower().endswith(".gz"):
        yield from _read_by_datasets("parquet", path, scratch)
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        unpacked = Path(folder) / "unpacked.parquet"
        try:
            with _open_bytes(path) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except _BROKEN as error:
            raise _unreadable(path, "parquet", error) from error
        for number, record in enumerate(_read_by_datasets("parquet", unpacked, scratch), start=1):
            yield record._replace(origin=f"{path.name}, row {number}")


def _read_csv(path: Path, scratch: Path) -> Iterator[Record]:
    """Read a CSV file. Every cell is read as text: ``007`` is not a number, and ``NA`` is not missing."""
    try:
        with _open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            header = next(csv.reader(text), [])
    except (UnicodeDecodeError, csv.Error, *_BROKEN) as error:
        raise _unreadable(path, "csv", error) from error
    as_text = {column: str for column in header}
    for record in _read_by_datasets("csv", path, scratch, converters=as_text, keep_default_na=False):
        yield record._replace(fields={key: _csv_cell(cell) for key, cell in record.fields.items()})


def _csv_cell(cell: Any) -> Any:
    """Return a cell's value: a list if it is one in JSON, such as messages; ``None`` if it is empty."""
    if not isinstance(cell, str) or not cell:
        return None
    if cell.startswith("[") and cell.endswith("]"):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _datasets() -> Any:
    """Return the ``datasets`` library, with its download reports to the hub turned off."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def _read_by_datasets(kind: str, path: Path, scratch: Path, **options: Any) -> Iterator[Record]:
    datasets = _datasets()
    try:
        table = datasets.load_dataset(
            kind, data_files=str(path), split="train", cache_dir=str(scratch / "datasets"), **options
        )
    except Exception as error:
        raise _unreadable(path, kind, error) from error
    yield from _numbered(table, path.name)


def _unreadable(path: Path, kind: str, error: BaseException) -> DataError:
    where = str(path)
    if kind != "parquet" and (row := _first_undecodable_line(path)):
        return DataError(
            f"{path.name}, line {row}: not UTF-8; save the file as UTF-8, or as JSONL, where bad rows "
            "can be skipped"
        )
    while error.__cause__ is not None:
        error = error.__cause__
    reason = first_line(error)
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


def _numbered(table: Sequence[Mapping[str, Any]], name: str) -> Iterator[Record]:
    """Read by index: iterating would stop at the first row that is not UTF-8 and lose those after it."""
    for index in range(len(table)):
        origin = f"{name}, row {index + 1}"
        try:
            yield Record(origin, table[index])
        except UnicodeDecodeError as error:
            yield Record(origin, {}, f"not UTF-8 ({error})")


# -- folders and the hub


def _read_folder(path: Path, source: Source) -> Iterator[Record]:
    datasets = _datasets()
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    load = datasets.load_from_disk if saved else datasets.load_dataset
    try:
        loaded = load(str(path))
    except Exception as error:
        reason = first_line(error)
        raise DataError(
            f"expected a folder saved by `datasets` or with data files at {path} ({reason}); check `path`"
        ) from error
    yield from _numbered(_pick_split(loaded, source), source.label)


def _pick_split(loaded: Any, source: Source) -> Sequence[Mapping[str, Any]]:
    if not hasattr(loaded, "keys"):
        return loaded  # type: ignore[no-any-return]
    if source.split not in loaded:
        known = ", ".join(sorted(loaded.keys()))
        raise DataError(
            f"expected a split '{source.split}' in {source.path}, got {known}; "
            f"set `split` to one of them{suggest(source.split, loaded.keys())}"
        )
    return loaded[source.split]  # type: ignore[no-any-return]


def _load_hub(source: Source) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.path, source.name, split=source.split)
    except Exception as error:
        reason = first_line(error)
        raise DataError(
            f"'{source.path}' is not a local file or folder, and loading it from the hub failed ({reason}); "
            "check `path`, `name` and `split`"
        ) from error

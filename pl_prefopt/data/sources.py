"""Reading files, folders and hub data sets into raw records with their origin."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pl_prefopt.data.file_readers import READERS, ROWS_PER_BLOCK, Record, reader_of, record_from, record_of
from pl_prefopt.data.joined_rows import Joins, join_records
from pl_prefopt.errors import ConfigError, DataError, first_line, listed, printable, suggest
from pl_prefopt.paths import data_suffix, is_data_path, matching, missing_data

_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json", "sampling.json")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_TOO_LARGE = 10**4300
"""The smallest integer that Python writes as no text by default, and reads from no JSON."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows of a split come from.

    Attributes:
        path: a file (``.jsonl``, ``.json``, ``.csv``, ``.parquet``, each also with ``.gz``), a pattern of
            such files (``shards/*.parquet``), a folder written by ``datasets`` or containing such files, or a
            data set's name on the hub.
        split: the split of a folder or hub data set.
        name: the configuration of a hub data set.
        columns: columns to rename in this source only, ``{name in the data: expected name}``, such as
            ``{question: prompt}``; ``data.columns`` is applied to the new names.
        passes: how often each row occurs per training epoch, on average; 1 by default. With 0.5, an epoch has
            half of the rows, and the next one the other half.
        rows_per_epoch: number of rows per training epoch, in place of ``passes``.
        streaming: whether a hub data set is read while it is downloaded, without the copy that ``datasets``
            otherwise keeps in its cache. Files and folders are always read like that.
    """

    path: str
    split: str = "train"
    name: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    passes: float | None = None
    rows_per_epoch: int | None = None
    streaming: bool = False

    @classmethod
    def of(cls, source: Any) -> Source:
        """Return a path, a ``Source``, or rows in memory as a ``Source``.

        Args:
            source: a path or hub name, a ``Source``, a list of dictionaries, a pandas or polars frame, or a
                ``datasets.Dataset``.

        Raises:
            ConfigError: for anything else.
            DataError: if a frame has a column twice.
        """
        if isinstance(source, Source):
            return source
        rows = _rows_in_memory(source)
        if rows is not None:
            return RowsInMemory(rows=rows)
        if not isinstance(source, str | Path):
            raise ConfigError(
                "expected a path, a hub name, a Source, a list of dictionaries, a pandas or polars frame or "
                f"a datasets.Dataset, got {type(source).__name__}"
            )
        return cls(path=str(source))

    @property
    def label(self) -> str:
        """The name of the source in messages: the file's or folder's name, or the hub name."""
        return printable(Path(self.path).name if Path(self.path).exists() else self.path, limit=200)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsInMemory(Source):
    """Rows that are in memory; ``Source.of`` makes it.

    Attributes:
        path: the name of the rows in messages.
        rows: one dictionary per row; reading one may raise an error, which makes it a bad row.
    """

    path: str = "rows in memory"
    rows: Sequence[Mapping[str, Any]]

    def records(self) -> Iterator[Record]:
        """Read the rows one by one."""
        return _numbered(self.rows, self.label)


def _rows_in_memory(source: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return the rows of a list or a frame, or a ``datasets.Dataset``; ``None`` for anything else."""
    if hasattr(source, "to_dicts"):  # polars
        return _PolarsRows(source)
    if hasattr(source, "iloc"):  # pandas, where a missing value is NaN
        _refuse_repeated(list(map(str, source.columns)))
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    if hasattr(source, "features") and hasattr(source, "__len__"):  # datasets
        rows: Sequence[Mapping[str, Any]] = source
        return rows
    if not isinstance(source, list | tuple) or not all(isinstance(row, Mapping) for row in source):
        return None
    return source


class _PolarsRows(Sequence[Mapping[str, Any]]):
    """The rows of a polars frame, converted when they are read."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, index: Any) -> Any:
        return self._frame.row(index, named=True)


def _refuse_repeated(columns: Sequence[str]) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(f"the frame has the column {listed(repeated)} twice; rename one of them")


def _plain(value: Any) -> Any:
    """Return a value without numpy's types, which frames have.

    Raises:
        ValueError: if an object has a key twice as text, or an integer has too many digits.
        RecursionError: if it is nested too deeply.
    """
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        plain = {str(name): _plain(item) for name, item in value.items()}
        if len(plain) < len(value):
            raise ValueError("a key occurs twice, as a text and as another value")
        return plain
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        raise ValueError("an integer of more than 4300 digits")
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Reading:
    """An opened source.

    Args:
        content_key: a text that changes whenever the content does.
        raw: reads the rows as the source has them, one by one, in our names.
        mapped: the names that settings gave to columns.
    """

    content_key: str
    raw: Callable[[], Iterator[Record]]
    mapped: frozenset[str] = frozenset()

    def records(self, joins: Joins | None = None) -> Iterator[Record]:
        """Read the rows; neighbours that are parts of a list are joined to it, which ``joins`` counts."""
        return join_records(self.raw(), self.mapped, joins)


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
    mapped = frozenset((*(columns or {}), *source.columns.values()))
    return Reading(found.content_key, lambda: _in_our_names(found.raw, source, columns or {}), mapped)


def _find(source: Source, scratch: Path) -> Reading:
    if isinstance(source, RowsInMemory):
        return Reading(_hash_records(source.records()), source.records)
    path = Path(source.path).expanduser()
    if path.is_file():
        read = reader_of(path)
        return Reading(_hash_files([path]), lambda: read(path, source.label, scratch))
    if path.is_dir():
        if _is_saved(path):
            files = sorted(p for p in path.rglob("*") if p.is_file())
            return Reading(_hash_files(files) + source.split, lambda: _read_saved(path, source))
        found = _files_of_split(path, source)
        return Reading(_hash_files(found), lambda: _read_files(path, found, source, scratch))
    if found := matching(path):
        return Reading(_hash_files(found), lambda: _read_matching(found, scratch))
    if is_data_path(source.path) or glob.has_magic(source.path):
        raise DataError(missing_data(path))
    if source.streaming:
        return _stream_hub(source)
    table = _load_hub(source)
    return Reading(str(table._fingerprint), lambda: _numbered(table, source.label))


def _hash_files(paths: Iterable[Path]) -> str:
    """Hash names and contents; modification times don't count."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(os.fsencode(path.name))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hash_records(records: Iterable[Record]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(repr(record).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


# -- names of columns


def _in_our_names(
    records: Callable[[], Iterator[Record]], source: Source, columns: Mapping[str, str]
) -> Iterator[Record]:
    """Read records with their columns renamed by the source's ``columns`` and then by ``data.columns``."""
    read = records
    of_data = {theirs: ours for ours, theirs in columns.items()}
    settings = ((f"the setting columns of {source.label}", source.columns), ("data.columns", of_data))
    for setting, new_names in settings:
        if new_names:
            _require(new_names, read(), source.label, setting)
            read = functools.partial(_renamed, read, new_names, setting)
    return read()


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


def _require(new_names: Mapping[str, str], records: Iterable[Record], label: str, setting: str) -> None:
    """Raise a ``ConfigError`` if no row has a column of one of these names."""
    names: dict[str, None] = {}
    absent = dict(new_names)
    for record in records:
        names |= dict.fromkeys(record.fields)
        absent = {theirs: ours for theirs, ours in absent.items() if theirs not in names}
        if not absent:
            return
    if names:  # an empty source has its own error
        theirs, ours = next(iter(absent.items()))
        raise ConfigError(
            f"{setting} maps '{printable(ours)}' to '{printable(theirs)}', but {label} has no such "
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


def _shown(path: Path) -> str:
    return printable(str(path), limit=200)


# -- folders and the hub


def _is_saved(path: Path) -> bool:
    """Whether ``datasets`` has written the folder."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _read_saved(path: Path, source: Source) -> Iterator[Record]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        reason = printable(first_line(error), limit=200)
        raise DataError(
            f"expected a folder saved by `datasets` at {_shown(path)} ({reason}); check `path`"
        ) from error
    yield from _numbered(_pick_split(loaded, source), source.label)


def _files_of_split(path: Path, source: Source) -> list[Path]:
    """Return the files of a folder that belong to a split by their names, as ``datasets`` understands them.

    Raises:
        DataError: if there are none.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file() and data_suffix(p) in READERS)
    files = [p for p in files if p.name not in _NOT_ROWS and not _is_hidden(p.relative_to(path))]
    if not files:
        known = ", ".join(READERS)
        raise DataError(
            f"expected files ending in {known} in the folder {_shown(path)}, got none; check `path`"
        )
    of_split: dict[str, list[Path]] = {}
    for file in files:
        of_split.setdefault(_split_of(file.relative_to(path)), []).append(file)
    if list(of_split) == [""]:
        of_split = {"train": files}
    elif unnamed := of_split.pop("", []):
        raise DataError(
            f"expected each file in {_shown(path)} to name its split (train, validation or test), but "
            f"{listed(p.name for p in unnamed)} does not; rename or remove it"
        )
    picked: list[Path] = _pick(of_split, source)
    return picked


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _split_of(path: Path) -> str:
    """Return the split that a file's name or folder says, or an empty string."""
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, names in _SPLIT_WORDS.items():
            if words.intersection(names):
                return split
    return ""


def _read_files(path: Path, files: Sequence[Path], source: Source, scratch: Path) -> Iterator[Record]:
    for file in files:
        name = printable(f"{source.label}/{file.relative_to(path)}", limit=200)
        yield from reader_of(file)(file, name, scratch)


def _read_matching(files: Sequence[Path], scratch: Path) -> Iterator[Record]:
    for file in files:
        yield from reader_of(file)(file, _shown(file), scratch)


def _pick_split(loaded: Any, source: Source) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = _pick(loaded, source) if hasattr(loaded, "keys") else loaded
    return rows


def _pick(splits: Mapping[str, Any], source: Source) -> Any:
    if source.split not in splits:
        known = ", ".join(sorted(splits))
        raise DataError(
            f"expected a split '{source.split}' in {printable(source.path, limit=200)}, got {known}; "
            f"set `split` to one of them{suggest(source.split, splits)}"
        )
    return splits[source.split]


def _numbered(table: Sequence[Mapping[str, Any]], name: str) -> Iterator[Record]:
    """Read by index: iterating would stop at the first row that is not UTF-8 and lose those after it."""
    for index in range(len(table)):
        yield record_from(functools.partial(_row, table, index), f"{name}, row {index + 1}")


def _row(table: Sequence[Mapping[str, Any]], index: int) -> Any:
    return _plain(table[index])


def _load_hub(source: Source) -> Any:
    import datasets

    with _named_hub_errors(source):
        return datasets.load_dataset(source.path, source.name, split=source.split)


def _stream_hub(source: Source) -> Reading:
    """Open a hub data set whose rows are downloaded as they are read."""
    import datasets

    with _named_hub_errors(source):
        builder = datasets.load_dataset_builder(source.path, source.name)
        rows = builder.as_streaming_dataset(split=source.split).with_format("arrow")
    key = "\0".join((str(builder.hash), str(builder.config_id), str(builder.info.version), source.split))
    return Reading(key, lambda: _streamed(rows, source))


def _streamed(rows: Any, source: Source) -> Iterator[Record]:
    number = 0
    blocks = iter(rows.iter(batch_size=ROWS_PER_BLOCK))
    while True:
        with _named_hub_errors(source):
            block = next(blocks, None)
        if block is None:
            return
        for index in range(len(block)):
            number += 1
            yield record_of(block.slice(index, 1), f"{source.label}, row {number}")


@contextmanager
def _named_hub_errors(source: Source) -> Iterator[None]:
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        raise DataError(
            f"'{printable(source.path, limit=200)}' is not a local file or folder, and loading it from the "
            f"hub failed ({printable(reason, limit=300)}); check `path`, `name` and `split`"
        ) from error

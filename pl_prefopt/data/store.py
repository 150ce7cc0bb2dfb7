"""Building the cached tables: the rows of a source, and a split's tokens."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.arrow import ROWS_SCHEMA, StoredRows, row_record
from pl_prefopt.data.cache import Cache, damaged
from pl_prefopt.data.columns import (
    ColumnInfo,
    ColumnsWriter,
    ColumnTally,
    StoredColumns,
    infos_from_json,
    infos_to_json,
)
from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.digest import Digest, bare
from pl_prefopt.data.formats import Converted, convert, scored_by
from pl_prefopt.data.joined_rows import Joins
from pl_prefopt.data.preparing import Work, tokenise
from pl_prefopt.data.renderer import Renderer
from pl_prefopt.data.report import OnBadRow, Problems, Tally
from pl_prefopt.data.sources import Reading, Source, open_source
from pl_prefopt.data.tables import Table, write_table
from pl_prefopt.errors import ConfigError, DataError, printable
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import PLAIN
from pl_prefopt.views import View

_ROWS_FILE, _COLUMNS_FILE = "rows.arrow", "columns.arrow"
_TOKENS_FILE, _NOTES_FILE = "tokens.arrow", "notes.json"
_HELD_OUT_FILE = "held_out.npy"


class RowStore(NamedTuple):
    """The rows of a source, on disk.

    Attributes:
        rows: all usable rows.
        content: a hash of them, without their extra columns.
        skipped: number of bad rows skipped.
        problems: sentences about the first of those.
        names: the names of the source's columns.
        columns: the types of its extra columns, including those that can't be kept.
        columns_content: a hash of the values of the extra columns.
        joined: lines on file rows that were joined to lists.
    """

    rows: StoredRows
    content: str
    skipped: int
    problems: list[str]
    names: list[str]
    columns: dict[str, ColumnInfo]
    columns_content: str
    joined: Sequence[str] = ()


class TokenStore(NamedTuple):
    """The tokens of one view of some rows, on disk.

    Attributes:
        table: the tokens of the rows that could be rendered.
        content: a hash of tokens and rows.
        skipped: number of rows that the template rejected.
        problems: sentences about the first of those.
        tally: counts over the rows.
    """

    table: Table
    content: str
    skipped: int
    problems: list[str]
    tally: Tally


def store_rows(
    cache: Cache,
    source: Source,
    *,
    on_bad_row: OnBadRow,
    max_rows: int | None,
    columns: Mapping[str, str] | None = None,
    aspects: Mapping[str, float] | None = None,
) -> RowStore:
    """Read the rows of a source, from the cache if they are there.

    Args:
        cache: the cache of the rows.
        source: what to read.
        on_bad_row: what to do with bad rows.
        max_rows: maximum number of rows, from the start of the source.
        columns: maps our column names to those of the source.
        aspects: the weights of the ratings whose weighted mean is a response's score, by their columns; by
            default the scores are those of the rows.

    Raises:
        ConfigError: if ``columns`` names a column that the source lacks, or has two for one name.
        DataError: if the source cannot be read, a row is bad and ``on_bad_row`` is ``error``, or no row is
            usable.
    """
    columns, aspects = columns or {}, aspects or {}
    reading = open_source(source, cache.root, columns)
    renamed = (sorted(source.columns.items()), sorted(columns.items()))
    settings = (renamed, sorted(aspects.items()), on_bad_row, max_rows)
    key = (reading.content_key, source.label, source.name, settings)

    def build(folder: Path) -> None:
        problems, digest, further, tally = Problems(on_bad_row), Digest(), Digest(), ColumnTally()
        joins = Joins()
        usable = _usable_rows(reading, aspects, problems, tally, joins)
        rows = itertools.islice(usable, max_rows)
        with closing(ColumnsWriter(folder / _COLUMNS_FILE)) as writer:
            records = (_noted(row, digest, further, writer) for row in rows)
            write_table(folder / _ROWS_FILE, ROWS_SCHEMA, records)
        if digest.items == 0:
            reason = _why_none(problems, joins.lines(source.label))
            raise DataError(
                f"expected preference rows in {printable(source.path, limit=200)}, got no usable one{reason}"
            )
        found = {"names": list(tally.names), "columns": infos_to_json(tally.finish())}
        found |= {"joined": joins.lines(source.label)}
        _write_notes(folder, digest, problems, **found, columns_content=further.hexdigest())

    return _read_rows(cache.entry("rows", key, build))


def _why_none(problems: Problems, joined: Sequence[str]) -> str:
    if problems.first:
        return f"; the first problem is {problems.first[0]}"
    return f"; {joined[0]}" if joined else ", it is empty"


def rewrite_rows(
    cache: Cache, key: tuple[object, ...], rows: Callable[[Path], Iterable[PreferenceRow]], what: str
) -> tuple[RowStore, Path]:
    """Store rows that were made of others, or read them from the cache.

    Args:
        cache: the cache of the rows.
        key: everything that determines them.
        rows: makes them; it gets the folder of the entry for files of its own.
        what: what made them, for messages.

    Returns:
        The rows, and the folder of the entry.

    Raises:
        DataError: if there are none.
    """

    def build(folder: Path) -> None:
        digest, further, tally = Digest(), Digest(), ColumnTally()
        with closing(ColumnsWriter(folder / _COLUMNS_FILE)) as writer:
            records = (_noted(row, digest, further, writer) for row in _tallied(rows(folder), tally))
            write_table(folder / _ROWS_FILE, ROWS_SCHEMA, records)
        if digest.items == 0:
            raise DataError(f"expected rows after {what}, got none; change its settings or the rows")
        found = {"names": list(tally.names), "columns": infos_to_json(tally.finish())}
        _write_notes(folder, digest, Problems(), **found, columns_content=further.hexdigest())

    folder = cache.entry("transformed", key, build)
    return _read_rows(folder), folder


def _tallied(rows: Iterable[PreferenceRow], tally: ColumnTally) -> Iterator[PreferenceRow]:
    for row in rows:
        further = [(name, value, "") for name, value in row.columns.items()]
        tally.add(dict(row.columns), Converted(row, further, ""), row.origin)
        yield row


def _read_rows(folder: Path) -> RowStore:
    notes = _read_notes(folder)
    notes["columns"] = infos_from_json(notes["columns"])
    stored = StoredColumns(folder / _COLUMNS_FILE, notes["columns"])
    return RowStore(StoredRows(Table(folder / _ROWS_FILE), stored), **notes)


def store_tokens(
    cache: Cache,
    rows: Sequence[PreferenceRow],
    renderer: Renderer,
    *,
    key: tuple[object, ...],
    view: str = PLAIN,
    on_bad_row: OnBadRow = "error",
    distinct: bool = False,
    processes: int | None = None,
) -> TokenStore:
    """Tokenise rows, or read their tokens from the cache.

    Args:
        cache: the cache of the tokens.
        rows: the rows to tokenise, with the view already applied.
        renderer: tokenises them.
        key: everything that determines ``rows``.
        view: the name of the view, for the cache.
        on_bad_row: what to do with rows that the chat template rejects, or that ``distinct`` finds.
        distinct: whether responses with different scores must differ as tokens. If they don't, there is
            nothing to learn, and an objective would count the row all the same.
        processes: the number of processes to tokenise with; by default one per core.

    Raises:
        DataError: naming the row, if it is bad and ``on_bad_row`` is ``error``.
    """

    def build(folder: Path) -> None:
        work = Work(rows=rows, renderer=renderer, on_bad_row=on_bad_row, distinct=distinct, folder=folder)
        digest, problems, tally = tokenise(work, folder / _TOKENS_FILE, processes=processes)
        if digest.items == 0:
            raise DataError(f"expected rows that can be tokenised, got no usable one: {problems.first[0]}")
        tally.finish()
        _write_notes(folder, digest, problems, tally=tally.to_json())

    folder = cache.entry("tokens", (key, view, renderer.fingerprint, on_bad_row, distinct), build)
    notes = _read_notes(folder)
    return TokenStore(Table(folder / _TOKENS_FILE), **{**notes, "tally": Tally.from_json(notes["tally"])})


class ViewedRows(Sequence[PreferenceRow]):
    """Rows with a view applied lazily."""

    def __init__(self, rows: Sequence[PreferenceRow], view: View) -> None:
        self._rows, self._view = rows, view
        self._shown: Callable[[int], PreferenceRow] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if self._shown is None:  # lazily, since the tokens are usually cached
            self._shown = self._view.over(self._rows)
        return self._shown(index)


def _usable_rows(
    reading: Reading, aspects: Mapping[str, float], problems: Problems, tally: ColumnTally, joins: Joins
) -> Iterator[PreferenceRow]:
    for record in reading.records(joins):
        if record.problem:
            problems.add(f"{record.origin}: {record.problem}")
            continue
        try:
            converted = scored_by(convert(record.fields, reading.mapped), aspects)
        except BadRowError as error:
            problems.add(f"{record.origin}: {error}")
            continue
        except RecursionError:
            problems.add(f"{record.origin}: nested too deeply")
            continue
        tally.add(record.fields, converted, record.origin)
        yield dataclasses.replace(converted.row, origin=record.origin)


def _noted(row: PreferenceRow, digest: Digest, further: Digest, writer: ColumnsWriter) -> dict[str, Any]:
    """Hash a row, write its extra columns and return its record."""
    digest.add(bare(row))
    if (columns := writer.add(row)) is not None:
        further.add((digest.items, columns))
    return row_record(row)


def _write_notes(folder: Path, digest: Digest, problems: Problems, **more: object) -> None:
    notes = {"content": digest.hexdigest(), "skipped": problems.count, "problems": problems.first, **more}
    (folder / _NOTES_FILE).write_text(json.dumps(notes), encoding="utf-8")


def _read_notes(folder: Path) -> dict[str, Any]:
    path = folder / _NOTES_FILE
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return dict(notes)
    except (OSError, ValueError, TypeError) as error:
        raise damaged(path, error) from error


def split_rows(
    cache: Cache, store: RowStore, held_out: float, seed: int
) -> dict[bool, npt.NDArray[np.int64]]:
    """Return the numbers of the training rows (``False``) and of those held out (``True``).

    Raises:
        ConfigError: if either side would be empty.
    """

    def build(folder: Path) -> None:
        # Via memory, since numpy's own error on a full disk doesn't say so.
        content = io.BytesIO()
        np.save(content, hold_out(store.rows, held_out, seed))
        (folder / _HELD_OUT_FILE).write_bytes(content.getvalue())

    folder = cache.entry("split", (store.content, held_out, seed), build)
    chosen = _read_choice(folder / _HELD_OUT_FILE, len(store.rows))
    if chosen.all() or not chosen.any():
        prompts = "one prompt" if len({row.prompt for row in store.rows}) == 1 else "its prompts"
        raise ConfigError(
            f"expected `data.held_out` to leave rows to train on and rows to hold out, got {held_out} of "
            f"{len(chosen)} rows with {prompts} kept together; choose another number, or set `data.val`"
        )
    return {held: np.flatnonzero(chosen == held) for held in (False, True)}


def _read_choice(path: Path, rows: int) -> npt.NDArray[np.bool_]:
    try:
        chosen: npt.NDArray[np.bool_] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, error) from error
    if chosen.dtype != np.bool_ or chosen.shape != (rows,):
        raise damaged(path, ValueError(f"it has dtype {chosen.dtype} and shape {chosen.shape}"))
    return chosen


def hold_out(rows: Sequence[PreferenceRow], held_out: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose the rows to hold out, prompt by prompt, so that no prompt is in both splits.

    Args:
        rows: all rows.
        held_out: a number of rows (int) or a fraction of them (float below 1). Prompts are added until there
            are at least that many rows.
        seed: random seed of the choice.

    Returns:
        bool [rows], true for held-out rows.
    """
    target = round(held_out * len(rows)) if isinstance(held_out, float) else held_out
    prompts: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        prompts.setdefault(row.prompt, []).append(number)
    groups = list(prompts.values())
    chosen, count = np.zeros(len(rows), dtype=np.bool_), 0
    for group in np.random.default_rng(seed).permutation(len(groups)):
        if count >= target:
            break
        chosen[groups[group]] = True
        count += len(groups[group])
    return chosen

"""Tokenising rows in parts: on all cores, and resumed after a kill from the parts that were finished."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from rich.progress import track

from pl_prefopt.data.arrow import TOKENS_SCHEMA, row_record, tokens_record
from pl_prefopt.data.cache import PART
from pl_prefopt.data.digest import Digest, bare
from pl_prefopt.data.renderer import EncodedRow, Rendered, Renderer
from pl_prefopt.data.report import OnBadRow, Problems, Tally
from pl_prefopt.data.tables import write_table
from pl_prefopt.errors import DataError, RunError
from pl_prefopt.rows import PreferenceRow

ROWS_PER_PART = 2000
"""Rows that one process tokenises at a time: a kill loses as many, and fewer rows need no processes."""

_ROWS_A_CALL = 256


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be tokenised, and how.

    Attributes:
        rows: the rows, with the view already applied.
        renderer: tokenises them.
        on_bad_row: what to do with rows that the chat template rejects, or that ``distinct`` finds.
        distinct: whether responses with different scores must differ as tokens.
        folder: where the parts go; finished ones that are there already are kept.
    """

    rows: Sequence[PreferenceRow]
    renderer: Renderer
    on_bad_row: OnBadRow
    distinct: bool
    folder: Path

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"{PART}{number:06d}.arrow"


class Part(NamedTuple):
    """What is known about a finished part, as JSON in a file of its own; see ``store.TokenStore``."""

    items: int
    content: str
    skipped: int
    problems: list[str]
    tally: dict[str, Any]
    checksum: int


def tokenise(work: Work, file: Path, *, processes: int | None = None) -> tuple[Digest, Problems, Tally]:
    """Tokenise rows into one table. The table does not depend on the number of processes.

    Args:
        work: what to tokenise.
        file: the table.
        processes: the number of processes; by default one per core, or this one where processes can't be
            forked safely.

    Returns:
        A hash, the bad rows, and counts.

    Raises:
        DataError: naming the first bad row, if bad rows are errors.
        RunError: if a process was killed.
    """
    count = max(1, -(-len(work.rows) // ROWS_PER_PART))
    problems, digest, tally = Problems(work.on_bad_row), Digest(), Tally()
    parts = _finished(work, count, processes)
    for part in track(parts, "Tokenising", total=count, disable=count == 1, transient=True):
        problems.extend(part.skipped, part.problems)
        digest.join(part.items, part.content)
        tally.merge(part.tally)
    _merge([work.path(number) for number in range(count)], file)
    for number in range(count):
        work.path(number).unlink()
        _notes(work, number).unlink()
    return digest, problems, tally


def _finished(work: Work, count: int, processes: int | None) -> Iterator[Part]:
    """Yield all parts in their order."""
    kept = {number: part for number in range(count) if (part := _read(work, number)) is not None}
    missing = [number for number in range(count) if number not in kept]
    most = min(len(missing), _cores() if processes is None else processes)
    with _executor(work, most) as executor:
        here = (_make(work, number) for number in missing)
        made = here if executor is None else executor.map(_in_worker, missing)
        try:
            for number in range(count):
                yield kept[number] if number in kept else next(made)
        except BrokenProcessPool as error:
            raise RunError(
                "a process that tokenised rows was killed, for example for want of memory; start the command "
                "again, which keeps the finished parts"
            ) from error


def _cores() -> int:
    """Return the number of processes to use: 1 where they can't be forked."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


@contextmanager
def _executor(work: Work, processes: int) -> Iterator[Executor | None]:
    if processes < 2:
        yield None
        return
    # Forked, as PyTorch's loaders are on Linux: a new interpreter would import the user's script again.
    executor = ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_start, initargs=(work,)
    )
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


_OF_WORKER: dict[str, Work] = {}


def _start(work: Work) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken
    _OF_WORKER["work"] = work


def _in_worker(number: int) -> Part:
    return _make(_OF_WORKER["work"], number)


def _make(work: Work, number: int) -> Part:
    """Tokenise the rows of a part; its notes appear when the table is complete."""
    problems, digest, tally = Problems(work.on_bad_row), Digest(), Tally()
    numbers = range(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, len(work.rows)))
    encoded = _encoded(_renderable(work, numbers, problems), work.renderer)
    if work.distinct:
        encoded = _distinct(encoded, problems)
    write_table(work.path(number), TOKENS_SCHEMA, _token_records(encoded, digest, tally))
    part = Part(
        digest.items,
        digest.hexdigest(),
        problems.count,
        problems.first,
        tally.counts(),
        zlib.crc32(work.path(number).read_bytes()),
    )
    draft = _notes(work, number).with_suffix(".tmp")
    draft.write_text(json.dumps(part._asdict()), encoding="utf-8")
    draft.replace(_notes(work, number))
    return part


def _notes(work: Work, number: int) -> Path:
    return work.path(number).with_suffix(".json")


def _read(work: Work, number: int) -> Part | None:
    """Return a finished part; ``None`` if there is none, or it isn't what was written."""
    try:
        part = Part(**json.loads(_notes(work, number).read_text(encoding="utf-8")))
        return part if zlib.crc32(work.path(number).read_bytes()) == part.checksum else None
    except (OSError, ValueError, TypeError):
        return None


def _merge(paths: Iterable[Path], file: Path) -> None:
    """Write the record batches of several tables to one, one at a time."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, TOKENS_SCHEMA) as writer:
        for path in paths:
            with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
                for number in range(reader.num_record_batches):
                    writer.write_batch(reader.get_batch(number))


# -- one part


class _Renderable(NamedTuple):
    number: int
    row: PreferenceRow
    rendered: Rendered


def _renderable(work: Work, numbers: Iterable[int], problems: Problems) -> Iterator[_Renderable]:
    for number in numbers:
        row = work.rows[number]
        try:
            rendered = work.renderer.render(row)
        except DataError as error:
            if problems.on_bad_row == "error":
                raise
            problems.add(str(error))
            continue
        yield _Renderable(number, row, rendered)


class _Encoded(NamedTuple):
    number: int
    row: PreferenceRow
    tokens: EncodedRow


def _encoded(renderable: Iterator[_Renderable], renderer: Renderer) -> Iterator[_Encoded]:
    while block := list(itertools.islice(renderable, _ROWS_A_CALL)):
        encoded = renderer.tokenise([item.rendered for item in block])
        for item, tokens in zip(block, encoded, strict=True):
            yield _Encoded(item.number, item.row, tokens)


def _distinct(encoded: Iterator[_Encoded], problems: Problems) -> Iterator[_Encoded]:
    """Leave out rows of which two responses have the same tokens and different scores."""
    for item in encoded:
        reason = _why_not_distinct(item.row.scores or (), item.tokens)
        if reason:
            problems.add(f"{item.row.origin or 'a row'}: {reason}")
        else:
            yield item


def _why_not_distinct(scores: Sequence[float], tokens: EncodedRow) -> str:
    first: dict[tuple[int, ...], int] = {}
    for number, ids in enumerate(tokens.response_ids[: len(scores)]):
        before = first.setdefault(tuple(ids), number)
        if scores[before] != scores[number]:
            cut = tokens.response_cuts[before] or tokens.response_cuts[number]
            where = (
                f"after the first {len(ids)} tokens, where `data.max_response_length` truncates them"
                if cut
                else "in nothing that is tokenised, such as white space"
            )
            return (
                f"responses {before + 1} and {number + 1} have the scores {scores[before]:g} and "
                f"{scores[number]:g}, but differ only {where}"
            )
    return ""


def _token_records(encoded: Iterator[_Encoded], digest: Digest, tally: Tally) -> Iterator[Mapping[str, Any]]:
    for number, row, tokens in encoded:
        record = tokens_record(number, tokens)
        digest.add(row_record(bare(row)) | record)
        tally.add(row, tokens)
        yield record

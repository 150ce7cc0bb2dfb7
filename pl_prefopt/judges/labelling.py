"""Labelling: a judge's verdicts on the rows of a file, as rows that can be trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.formats import WEIGHT, Converted, convert, relabelled
from pl_prefopt.data.joined_rows import Joins
from pl_prefopt.data.report import OnBadRow
from pl_prefopt.data.sources import Reading, Source, check_names, open_source
from pl_prefopt.errors import ConfigError, DataError, RunError
from pl_prefopt.files import NO_LOCKS, atomic_write
from pl_prefopt.judges.base import Cost, Judge, JudgedRow, Verdict
from pl_prefopt.rows import PreferenceRow, Value
from pl_prefopt.views import CONTRAST

ROWS_PER_PART = 256
"""Rows per part: the work of a judge without a cache that a kill can lose."""

_FORMAT = 2
_KEPT = 5


@dataclass(kw_only=True)
class Labelled:
    """What was counted while labelling.

    Attributes:
        rows: rows that were judged.
        incomplete: those with a response that has no score.
        dropped: those of them that were left out.
        invalid: responses without a score, or pairs without a probability.
        problems: why the judge's answers are invalid, the first few.
        cost: what the verdicts took, of interrupted runs only as far as their parts are complete.
        skipped: bad rows that were skipped.
        bad_rows: sentences about the first of those.
        joined: lines on file rows that were joined to lists.
        left_out: columns that are not written since JSON can't hold them, and why.
    """

    rows: int = 0
    incomplete: int = 0
    dropped: int = 0
    invalid: int = 0
    problems: list[str] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    skipped: int = 0
    bad_rows: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def count(self, verdict: Verdict, *, dropped: bool) -> None:
        """Count a verdict."""
        self.rows += 1
        self.incomplete += not verdict.complete
        self.dropped += dropped
        self.invalid += verdict.invalid
        self.cost += verdict.cost
        self.problems = [*self.problems, *verdict.problems][:_KEPT]

    def add(self, other: Labelled) -> None:
        """Add the counts of a part."""
        for name in ("rows", "incomplete", "dropped", "invalid", "cost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems = [*self.problems, *other.problems][:_KEPT]


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What is labelled, by which judge.

    Attributes:
        source: the rows.
        judge: the judge.
        columns: maps our column names to those of the source.
        context: a text that the judge is given with each row, such as criteria.
        context_column: a column with such a text of each row; it comes after ``context``.
        on_bad_row: what to do with bad rows.
        drop_invalid: leave out rows with an invalid answer; otherwise they are written without scores.
        max_rows: maximum number of rows, from the start of the source.
    """

    source: Source
    judge: Judge
    columns: Mapping[str, str] = field(default_factory=dict)
    context: str = ""
    context_column: str | None = None
    on_bad_row: OnBadRow = "error"
    drop_invalid: bool = False
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.context_column == "context":
            raise ConfigError(
                "The column 'context' is a part of the prompt, so the judge sees it without "
                "`context_column`: leave that out, or name the column otherwise with `columns`, as in "
                "`--columns '{criteria: context}' --context_column criteria`."
            )

    def run(self, out: Path, progress: Callable[[int, int, Labelled], None] | None = None) -> Labelled:
        """Judge all rows and write them to ``out``. An interrupted run goes on after its last complete part.

        Args:
            out: the file to write; it must not exist yet.
            progress: called after each part with the rows done, all rows, and what was counted so far.

        Raises:
            ConfigError: if ``out`` can't be written, or parts of another labelling are in its place.
            DataError: for bad rows that are not to be skipped, before anything is judged.
        """
        _check_out(out)
        check_names(self.columns)
        with tempfile.TemporaryDirectory() as scratch, _parts_of(out) as parts:
            reading = open_source(self.source, Path(scratch), self.columns)
            signature = f"{self.judge.name} {self.judge.fingerprint()}"
            _claim(parts, self._key(reading, signature), out)
            total, found = self._survey(reading)
            usable = itertools.islice(self._usable(reading, Labelled()), self.max_rows)
            for number in range(-(-total // ROWS_PER_PART)):
                rows = itertools.islice(usable, ROWS_PER_PART)
                part = parts / f"{number:06d}.jsonl"
                if part.exists():
                    _skip(rows)
                else:
                    self._write_part(part, rows, signature)
                found.add(_counts_of(part))
                if progress is not None:
                    progress(min(total, (number + 1) * ROWS_PER_PART), total, found)
            self._join(parts, out)
        shutil.rmtree(parts)
        return found

    def _key(self, reading: Reading, signature: str) -> str:
        """Return a hash of all that the rows to be written depend on."""
        renamed = sorted(self.source.columns.items()), sorted(self.columns.items())
        settings = (self.context, self.context_column, self.on_bad_row, self.drop_invalid, self.max_rows)
        parts = (_FORMAT, reading.content_key, signature, renamed, settings)
        return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    # -- rows

    def _survey(self, reading: Reading) -> tuple[int, Labelled]:
        """Read all rows once, so that a bad one is told before anything is paid for."""
        found, joins = Labelled(), Joins()
        rows = itertools.islice(self._usable(reading, found, joins), self.max_rows)
        total = sum(1 for _ in rows)
        found.joined = joins.lines(self.source.label)
        if not total:
            reason = f"; the first problem is {found.bad_rows[0]}" if found.bad_rows else ""
            raise DataError(f"expected rows in {self.source.path}, got no usable one{reason}.")
        return total, found

    def _usable(self, reading: Reading, found: Labelled, joins: Joins | None = None) -> Iterator[_Row]:
        for record in reading.records(joins):
            try:
                row = self._row(record, reading.mapped)
            except BadRowError as error:
                self._count_bad(f"{record.origin}: {error}", found)
                continue
            for name, reason in row.left_out.items():
                found.left_out.setdefault(name, f"{reason} in {record.origin}")
            yield row

    def _row(self, record: Record, mapped: frozenset[str]) -> _Row:
        if record.problem:
            raise BadRowError(record.problem)
        try:
            converted = convert(record.fields, mapped)
            fields, left_out = _writable(record.fields)
            _check_loads_again(fields, converted)
        except RecursionError:
            raise BadRowError("nested too deeply") from None
        further = {name: value for name, value, _ in converted.further}
        row = dataclasses.replace(converted.row, origin=record.origin)
        judged = JudgedRow.of(row, self._context(further))
        return _Row(fields, left_out, converted, dataclasses.replace(judged, columns=further))

    def _context(self, columns: Mapping[str, Any]) -> str:
        if self.context_column is None:
            return self.context
        own = columns.get(self.context_column)
        if not isinstance(own, str):
            raise BadRowError(f"expected a text in the column '{self.context_column}', the judge's context")
        return "\n\n".join(filter(None, [self.context, own]))

    def _count_bad(self, sentence: str, found: Labelled) -> None:
        if self.on_bad_row == "error":
            raise DataError(f"{sentence}; fix the row, or set `--on_bad_row skip` to skip such rows")
        found.skipped += 1
        found.bad_rows = [*found.bad_rows, sentence][:_KEPT]

    # -- parts

    def _write_part(self, part: Path, rows: Iterator[_Row], signature: str) -> None:
        """Judge the rows of a part and write it: a line with its counts, and a line per row."""
        self.judge.prepare()
        found, lines = Labelled(), []
        block = list(rows)
        verdicts = self.judge.verdicts(row.judged for row in block)
        for row, verdict in zip(block, verdicts, strict=True):
            dropped = self.drop_invalid and not verdict.complete
            found.count(verdict, dropped=dropped)
            if not dropped:
                lines.append(_line(row, columns_of(verdict) | {"judge": signature}))
        with atomic_write(part) as draft:
            counts = json.dumps(dataclasses.asdict(found))
            draft.write_text("".join(f"{line}\n" for line in [counts, *lines]), encoding="utf-8")

    def _join(self, parts: Path, out: Path) -> None:
        with atomic_write(out) as draft, draft.open("wb") as joined:
            for part in sorted(parts.glob("*.jsonl")):
                with part.open("rb") as file:
                    file.readline()
                    shutil.copyfileobj(file, joined)


class _Row(NamedTuple):
    """A row as it is written, without what JSON can't hold, as it is understood, and as the judge sees it."""

    fields: Mapping[str, Any]
    left_out: Mapping[str, str]
    converted: Converted
    judged: JudgedRow


def _writable(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the columns that JSON can hold, and why it can't hold the others."""
    kept, left_out = {}, {}
    for name, value in fields.items():
        try:
            json.dumps({name: value}, default=_plain)
        except (TypeError, ValueError) as error:
            left_out[name] = str(error)
        else:
            kept[name] = value
    return kept, left_out


def _check_loads_again(fields: Mapping[str, Any], converted: Converted) -> None:
    """Raise a ``BadRowError`` if a row would load as another one once it has a verdict."""
    before = _parts_that_stay(converted.row)
    try:
        new = relabelled(fields, converted, {"scores": [0.0] * len(converted.row.responses)})
        after = _parts_that_stay(convert(new).row)
    except BadRowError as error:
        raise BadRowError(f"with a verdict it would not load again ({error})") from None
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise BadRowError(f"with a verdict it would load again with another '{changed[0]}'")


def _parts_that_stay(row: PreferenceRow) -> dict[str, object]:
    columns: dict[str, Value] = {name: row.columns.get(name) for name in (CONTRAST, WEIGHT)}
    return {"prompt": row.prompt, "responses": row.responses, **columns}


def _line(row: _Row, labels: Mapping[str, Any]) -> str:
    """Return a row with its verdict."""
    fields = relabelled(row.fields, row.converted, labels)
    line = json.dumps(fields, ensure_ascii=False, default=_plain)
    # An unpaired surrogate in a column that nothing reads is kept as JSON has it.
    return line if _is_unicode(line) else json.dumps(fields, default=_plain)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def columns_of(verdict: Verdict) -> dict[str, Any]:
    """Return the columns that hold a verdict.

    ``scores`` are there if every response has one; otherwise ``judge_scores`` has those that are known.

    Examples:
        >>> columns_of(Verdict.of_probabilities([[0.5, 0.75], [0.25, 0.5]]))
        {'scores': [0.75, 0.25], 'preference': 0.75, 'pair_probabilities': [[0.5, 0.75], [0.25, 0.5]]}
        >>> columns_of(Verdict(scores=(1.0, None), problems=("no verdict",)))
        {'judge_scores': [1.0, None], 'judge_problems': ['no verdict']}
    """
    written: dict[str, Any] = {"scores" if verdict.complete else "judge_scores": list(verdict.scores)}
    if verdict.preference is not None:
        written["preference"] = verdict.preference
    if verdict.probabilities is not None:
        written["pair_probabilities"] = _lists(verdict.probabilities)
    if verdict.by_order is not None:
        written["pair_probabilities_by_order"] = [_lists(matrix) for matrix in verdict.by_order]
    for name, texts in (("rationales", verdict.rationales), ("judge_problems", verdict.problems)):
        written |= {name: list(texts)} if texts else {}
    return written


def _lists(matrix: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    return [list(line) for line in matrix]


def _plain(value: Any) -> str:
    """Return a date or a decimal number of a Parquet file as text."""
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"a value of type {type(value).__name__}")


def _skip(rows: Iterator[object]) -> None:
    for _ in rows:
        pass


def _counts_of(part: Path) -> Labelled:
    try:
        with part.open(encoding="utf-8") as file:
            counts = json.loads(file.readline())
        return Labelled(**{**counts, "cost": Cost(**counts["cost"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"the part {part} is corrupt: remove it to have its rows judged again.") from error


def _check_out(out: Path) -> None:
    if out.suffix != ".jsonl":
        raise ConfigError(f"expected `--out` to be a file ending in .jsonl, got {out}.")
    if out.exists():
        raise ConfigError(f"{out} exists already: remove it, or name another file with `--out`.")


@contextmanager
def _parts_of(out: Path) -> Iterator[Path]:
    """Yield the folder of the parts of ``out``, locked against other processes."""
    folder = out.with_name(f".{out.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"another process is labelling {out}: wait until it ends, or stop it.") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield folder
    finally:
        lock.release(force=True)


def _claim(parts: Path, key: str, out: Path) -> None:
    """Check that the parts in a folder, if there are any, belong to this labelling.

    Raises:
        ConfigError: if they don't.
    """
    file = parts / "key"
    claimed = file.read_text(encoding="utf-8") if file.exists() else ""
    if claimed != key and any(parts.glob("*.jsonl")):
        raise ConfigError(
            f"{parts} holds parts of {out} by another judge, of other rows or with other settings: go on "
            "with those, remove the folder, or name another file with `--out`."
        )
    with atomic_write(file) as draft:
        draft.write_text(key, encoding="utf-8")

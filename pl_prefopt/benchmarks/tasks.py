"""Tasks of a benchmark, their published file formats, and what a judge is asked about each."""

from __future__ import annotations

import tempfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from pl_prefopt.benchmarks.results import Result
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.sources import Source, open_source
from pl_prefopt.errors import DataError, closest, listed, printable, suggest
from pl_prefopt.judges import Gives, JudgedRow, Verdict
from pl_prefopt.rows import Message

Number: TypeAlias = float | None
"""A judge's score, or ``None`` for an invalid answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A prompt with its right and its wrong responses.

    Attributes:
        subset: the part of the benchmark that it belongs to.
        key: its name, unique within the benchmark.
        prompt: the user's turn.
        right: the right responses.
        wrong: the wrong responses.
        origin: where it came from, for messages.
    """

    subset: str
    key: str
    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    origin: str = ""

    @property
    def responses(self) -> tuple[str, ...]:
        """All responses, the right ones first."""
        return (*self.right, *self.wrong)


class Ask(NamedTuple):
    """A question to a judge.

    Attributes:
        task: the task.
        places: the responses that it shows, as indices of ``task.responses``, in the order shown.
    """

    task: Task
    places: tuple[int, ...]

    def row(self) -> JudgedRow:
        """Return what the judge gets."""
        texts = [self.task.responses[place] for place in self.places]
        return JudgedRow(
            prompt=(Message("user", self.task.prompt),),
            responses=tuple((Message("assistant", text),) for text in texts),
            origin=self.task.origin,
        )


def shuffled(task: Task, places: Sequence[int]) -> Ask:
    """Return a question that shows responses in an order that depends only on the task and them.

    A judge that prefers one position must not gain from where the right response is.
    """
    seed = zlib.crc32(f"{task.key} {sorted(places)}".encode())
    order = np.random.default_rng(seed).permutation(len(places))
    return Ask(task, tuple(places[number] for number in order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a judge said about one task.

    Attributes:
        scores: one number per response, in the order of ``Task.responses``.
        wins: [right, wrong], the probability that a right response is better than a wrong one, of a judge
            that gives probabilities and was asked pair by pair.
        orders: for each pair that the judge saw in both orders, the probability that the response of the
            lower number is better: where it is shown first, and where it is shown second.
    """

    scores: tuple[Number, ...] = ()
    wins: tuple[tuple[Number, ...], ...] = ()
    orders: tuple[tuple[Number, Number], ...] = ()

    def compare(self, task: Task) -> list[list[Number]]:
        """Return [right, wrong] numbers: above 0 where the right response is preferred, 0 for a tie."""
        if self.wins:
            return [[None if one is None else one - 0.5 for one in line] for line in self.wins]
        right, wrong = self.scores[: len(task.right)], self.scores[len(task.right) :]
        return [[None if one is None or other is None else one - other for other in wrong] for one in right]


class Benchmark(ABC):
    """A benchmark of judges and reward models: its file format, its questions and its scores.

    Attributes:
        name: its name on the command line.
        title: its name for people.
        hub: its data set on the hub; empty where that is not known.
        split: the split of that data set.
        columns: the columns that every row of its files has.
        optional: further columns of the published files.
        counts: the number of tasks of each subset, as published.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub: ClassVar[str] = ""
    split: ClassVar[str] = "train"
    columns: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[Mapping[str, int]]

    @abstractmethod
    def tasks(self, records: Iterable[Record]) -> Iterator[Task]:
        """Turn the rows of a file, whose columns have been checked, into tasks.

        Raises:
            DataError: naming the row, if a value can't be used.
        """

    def asks(self, task: Task, gives: Gives) -> list[Ask]:
        """Return the questions to a judge: all responses at once for scores, else right against wrong."""
        if gives == "scores":
            return [Ask(task, tuple(range(len(task.responses))))]
        first = len(task.right)
        return [shuffled(task, (i, first + j)) for i in range(first) for j in range(len(task.wrong))]

    def answers(self, task: Task, gives: Gives, said: Sequence[tuple[Ask, Verdict]]) -> Answers:
        """Collect the verdicts on the questions of ``asks``."""
        if gives == "scores":
            ((_, verdict),) = said
            return Answers(scores=verdict.scores)
        wins: list[list[Number]] = [[None] * len(task.wrong) for _ in task.right]
        for ask, verdict in said:
            right, wrong = sorted(ask.places)
            wins[right][wrong - len(task.right)] = probability(ask, verdict, right, wrong)
        return Answers(wins=tuple(map(tuple, wins)))

    @abstractmethod
    def score(self, judged: Sequence[tuple[Task, Answers]], gives: Gives) -> Result:
        """Return the benchmark's numbers."""

    def check_counts(self, tasks: Sequence[Task]) -> list[str]:
        """Return a sentence for each subset of which there are not as many tasks as were published."""
        found = Counter(task.subset for task in tasks)
        return [
            f"{found[subset]} of {number} tasks of '{subset}'"
            for subset, number in self.counts.items()
            if found[subset] != number
        ]


def probability(ask: Ask, verdict: Verdict, right: int, wrong: int) -> Number:
    """Return the probability that one response of a question is better than another one."""
    assert verdict.probabilities is not None
    return verdict.probabilities[ask.places.index(right)][ask.places.index(wrong)]


# -- reading


class TaskFile(NamedTuple):
    """The tasks of a file or hub data set.

    Attributes:
        tasks: the tasks.
        content_key: changes whenever the content does.
        missing: sentences about subsets without all of their tasks, and about tasks that were left out.
    """

    tasks: list[Task]
    content_key: str
    missing: list[str]


def read_tasks(
    benchmark: Benchmark, source: Source, *, ignore: Collection[str] = (), partial: bool = False
) -> TaskFile:
    """Read the tasks of a benchmark in its published format.

    Args:
        benchmark: the benchmark.
        source: a file, a folder or a data set of the hub.
        ignore: columns and subsets that the benchmark doesn't have, and that are to be left out.
        partial: whether a part of the benchmark will do.

    Raises:
        DataError: if a column is missing or unknown, a value can't be used, a subset is unknown, a task
            occurs twice, or there are not as many as published.
    """
    with tempfile.TemporaryDirectory() as scratch:
        reading = open_source(source, Path(scratch))
        records = (checked(benchmark, record, ignore) for record in reading.raw())
        found = list(benchmark.tasks(records))
    tasks = [task for task in found if task.subset in benchmark.counts or task.subset not in ignore]
    if not tasks:
        raise DataError(f"expected tasks of {benchmark.title} in {source.label}, got none; check --data.")
    _check_tasks(benchmark, tasks)
    missing = benchmark.check_counts(tasks)
    if missing and not partial:
        raise DataError(
            f"expected all of {benchmark.title} in {source.label}, got {listed(missing, most=3)}; type "
            "--partial to score what is there."
        )
    if len(tasks) < len(found):
        left_out = sorted({task.subset for task in found} - set(benchmark.counts))
        missing = [*missing, f"{len(found) - len(tasks)} tasks of {listed(left_out)} are left out"]
    return TaskFile(tasks, reading.content_key, missing)


def checked(benchmark: Benchmark, record: Record, ignore: Collection[str]) -> Record:
    """Return a row without the columns to ignore, once it has exactly those of the benchmark."""
    if record.problem:
        raise DataError(f"{record.origin}: {record.problem}; fix the row.")
    missing = [name for name in benchmark.columns if record.fields.get(name) is None]
    if missing:
        raise DataError(
            f"{record.origin}: the column '{missing[0]}' of {benchmark.title} is missing; its columns are "
            f"{listed(benchmark.columns)}{_like(missing[0], record.fields)}."
        )
    known = {*benchmark.columns, *benchmark.optional}
    foreign = [name for name in record.fields if name not in known and name not in ignore]
    if foreign:
        name = printable(foreign[0])
        raise DataError(
            f"{record.origin}: {benchmark.title} has no column '{name}'{suggest(name, known)}; its columns "
            f"are {listed([*benchmark.columns, *benchmark.optional])}: type --ignore {name} if the rest of "
            "the row is right."
        )
    return record._replace(fields={name: record.fields[name] for name in record.fields if name in known})


def _like(name: str, found: Mapping[str, Any]) -> str:
    match = closest(name, found)
    return f", and the row has '{printable(match)}'" if match else ""


def _check_tasks(benchmark: Benchmark, tasks: Sequence[Task]) -> None:
    seen: dict[str, str] = {}
    for task in tasks:
        if task.subset not in benchmark.counts:
            raise DataError(
                f"{task.origin}: {benchmark.title} has no subset '{printable(task.subset)}'"
                f"{suggest(task.subset, benchmark.counts)}; they are {listed(benchmark.counts, most=30)}: "
                f"type --ignore '{printable(task.subset)}' to leave its tasks out."
            )
        if task.key in seen:
            raise DataError(
                f"{task.origin}: the task '{printable(task.key)}' is already in {seen[task.key]}; remove one "
                "of them."
            )
        seen[task.key] = task.origin


def text(record: Record, name: str) -> str:
    """Return a text of a row."""
    value = record.fields[name]
    if not isinstance(value, str) or not value:
        raise DataError(f"{record.origin}: expected '{name}' to be a text, got {_shown(value)}.")
    return value


def texts(record: Record, name: str, number: int | None = None) -> tuple[str, ...]:
    """Return the texts in a list of a row, of a certain number if that is given."""
    value = record.fields[name]
    if hasattr(value, "tolist"):
        value = value.tolist()
    wanted = "texts" if number is None else f"{number} texts"
    fits = isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value)
    if not fits or (number is not None and len(value) != number):
        raise DataError(f"{record.origin}: expected '{name}' to be a list of {wanted}, got {_shown(value)}.")
    return tuple(value)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return printable(repr(value))

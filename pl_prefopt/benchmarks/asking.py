"""Asking a judge about the tasks of a benchmark; its verdicts are kept, so that a killed run resumes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.benchmarks.orders import in_both_orders
from pl_prefopt.benchmarks.tasks import Answers, Ask, Benchmark, Task
from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.judges import Cost, Judge, Verdict

FILE = "verdicts.jsonl"


def ask_all(
    benchmark: Benchmark, judge: Judge, tasks: Sequence[Task], *, content_key: str, folder: Path
) -> tuple[list[tuple[Task, Answers]], Cost]:
    """Ask a prepared judge about all tasks.

    Verdicts are appended to ``verdicts.jsonl`` in ``folder`` one by one; those that are there already are
    not asked for again.

    Args:
        benchmark: the benchmark.
        judge: the judge, prepared.
        tasks: its tasks.
        content_key: changes whenever the tasks do.
        folder: where the verdicts are kept.

    Returns:
        The answers by task, and what they cost, those of interrupted runs among them.

    Raises:
        ConfigError: if the folder has the verdicts of another judge or on other tasks.
        RunError: if its verdicts can't be read.
    """
    asks = [ask for task in tasks for ask in _asks(benchmark, judge, task)]
    head = {"benchmark": benchmark.name, "judge": judge.fingerprint(), "tasks": content_key}
    known = _read(folder / FILE, head, asks)
    todo = [number for number in range(len(asks)) if number not in known]
    if todo:
        print(f"{judge.name}: {len(asks)} questions, {len(known)} of them answered before", flush=True)
        with (folder / FILE).open("a", encoding="utf-8") as file:
            verdicts = judge.verdicts(asks[number].row() for number in todo)
            for number, verdict in zip(todo, verdicts, strict=True):
                file.write(json.dumps({"question": number, **_fields(asks[number], verdict)}) + "\n")
                file.flush()
                known[number] = verdict
    cost = sum((known[number].cost for number in range(len(asks))), Cost())
    return list(_by_task(benchmark, judge, tasks, asks, known)), cost


def _asks(benchmark: Benchmark, judge: Judge, task: Task) -> list[Ask]:
    """Return the questions about a task; a judge that sees both orders by itself is asked in one."""
    asks = benchmark.asks(task, judge.gives)
    if not judge.sees_both_orders:
        return asks
    return list({frozenset(ask.places): ask for ask in reversed(asks)}.values())[::-1]


def _by_task(
    benchmark: Benchmark, judge: Judge, tasks: Sequence[Task], asks: Sequence[Ask], known: dict[int, Verdict]
) -> Iterator[tuple[Task, Answers]]:
    said: dict[str, list[tuple[Ask, Verdict]]] = {task.key: [] for task in tasks}
    for number, ask in enumerate(asks):
        said[ask.task.key].append((ask, known[number]))
    for task in tasks:
        answers = benchmark.answers(task, judge.gives, said[task.key])
        yield task, dataclasses.replace(answers, orders=in_both_orders(said[task.key]))


def _fields(ask: Ask, verdict: Verdict) -> dict[str, Any]:
    return {
        "task": ask.task.key,
        "shown": ask.places,
        "scores": verdict.scores,
        "probabilities": verdict.probabilities,
        "by_order": verdict.by_order,
        "problems": verdict.problems,
        "cost": dataclasses.asdict(verdict.cost),
    }


def _read(path: Path, head: dict[str, str], asks: Sequence[Ask]) -> dict[int, Verdict]:
    """Return the verdicts in a file by question, and cut off a line that a kill left unfinished."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    if not whole:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return {}
    first, *lines = whole.split(b"\n")
    if _parsed(first, path, 1) != head:
        raise ConfigError(
            f"expected {path} to hold the verdicts of this judge on these tasks, but they are of another "
            "judge, other settings or other tasks: choose another folder with --out, or delete the file."
        )
    with path.open("rb+") as file:
        file.truncate(len(whole) + 1)
    return dict(_verdict(_parsed(line, path, number), asks, path) for number, line in enumerate(lines, 2))


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise RunError(
            f"line {number} of {path} is corrupt: delete the line to have its question asked again, or the "
            "file to start anew."
        ) from error


def _verdict(line: dict[str, Any], asks: Sequence[Ask], path: Path) -> tuple[int, Verdict]:
    """Return a question's number and verdict, once the question is still the same."""
    number = line["question"]
    ask = asks[number] if number < len(asks) else None
    if ask is None or (line["task"], tuple(line["shown"])) != (ask.task.key, ask.places):
        raise RunError(
            f"{path} has the answer to another question at the place of question {number}; another version "
            "of prefopt wrote it: choose another folder with --out, or delete the file."
        )
    matrix, orders = line["probabilities"], line.get("by_order")
    return number, Verdict(
        scores=tuple(line["scores"]),
        probabilities=None if matrix is None else tuple(map(tuple, matrix)),
        by_order=None if orders is None else (tuple(map(tuple, orders[0])), tuple(map(tuple, orders[1]))),
        problems=tuple(line["problems"]),
        cost=Cost(**line.get("cost", {})),
    )

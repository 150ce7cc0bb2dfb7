"""What a report compares: runs, each with a colour and its predictions of one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pl_prefopt.report.pairs import Pairs, find_pairs
from pl_prefopt.report.predictions import Prediction, read_predictions
from pl_prefopt.report.runs import Run

COLOURS = (
    "#3b7dd8",
    "#e0702f",
    "#2f9e6e",
    "#b65fc9",
    "#d1495b",
    "#8f8a17",
    "#1399ad",
    "#9c6b4e",
    "#6f6fd8",
    "#d0689b",
)
"""Readable on white and on black. The eleventh run has the first's colour again, and another marker."""

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross")


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A run in a report.

    Attributes:
        run: its files.
        colour: its own in every figure.
        symbol: its marker in every figure.
        predictions: those of the stage that the report compares; empty without.
        pairs: the pairs among them.
    """

    run: Run
    colour: str
    symbol: str
    predictions: Sequence[Prediction]
    pairs: Pairs


def make_subjects(runs: Sequence[Run], stage: str | None) -> list[Subject]:
    """Read the predictions of ``stage``.

    Raises:
        DataError: if a file of predictions cannot be read.
    """
    subjects = []
    for number, run in enumerate(runs):
        path = run.predictions.get(stage or "")
        predictions = read_predictions(path) if path else []
        subjects.append(
            Subject(
                run=run,
                colour=COLOURS[number % len(COLOURS)],
                symbol=_SYMBOLS[number // len(COLOURS) % len(_SYMBOLS)],
                predictions=predictions,
                pairs=find_pairs(predictions),
            )
        )
    return subjects


def judge_alike(subjects: Sequence[Subject]) -> bool:
    """Return whether all runs with predictions made them of the same prompts, responses and scores."""
    texts = [
        [
            (item.prompt, tuple((response.messages, response.score) for response in item.responses))
            for item in subject.predictions
        ]
        for subject in subjects
        if subject.predictions
    ]
    return all(other == texts[0] for other in texts[1:])


def same_objective(subjects: Sequence[Subject]) -> bool:
    """Return whether losses and rewards compare: all settings of the objective are the same."""
    return all(subject.run.objective == subjects[0].run.objective for subject in subjects)


def of_one_family(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Return the runs by their objective, whatever its numbers, such as β, are.

    Objectives of one name with different parts, such as two compositions, are numbered.
    """
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.run.family, []).append(subject)
    methods = [members[0].run.method or "no objective" for members in groups.values()]
    names = [
        f"{method} {methods[: place + 1].count(method)}" if methods.count(method) > 1 else method
        for place, method in enumerate(methods)
    ]
    return dict(zip(names, groups.values(), strict=True))

"""Sample generations of runs, side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pl_prefopt.errors import DataError
from pl_prefopt.files import whole_rows
from pl_prefopt.report.subjects import Subject

_MOST = 10
_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: whose it is, and its text.

    Attributes:
        subject: the run; ``None`` for an answer from before training that all runs share.
        when: ``before training``, or the step.
        text: the answer.
    """

    subject: Subject | None
    when: str
    text: str


@dataclass(frozen=True, slots=True)
class Generated:
    """A prompt with its answers."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class _Sample:
    step: int
    before: str
    now: str


def generations(subjects: Sequence[Subject]) -> list[Generated]:
    """Return the first prompts that runs answered, each with the answers at each run's last validation.

    Raises:
        DataError: if a file of generations is corrupt.
    """
    samples = [(subject, _last_samples(subject.run.folder / "generations.csv")) for subject in subjects]
    prompts = list(dict.fromkeys(prompt for _, found in samples for prompt in found))
    return [
        Generated(prompt, _answers([(one, found[prompt]) for one, found in samples if prompt in found]))
        for prompt in prompts[:_MOST]
    ]


def _answers(samples: Sequence[tuple[Subject, _Sample]]) -> list[Answer]:
    before = {sample.before for _, sample in samples}
    answers = []
    if len(before) == 1:
        answers.append(Answer(None, "before training", _cut(before.pop())))
    else:
        answers += [Answer(one, "before training", _cut(sample.before)) for one, sample in samples]
    return answers + [Answer(one, f"step {sample.step:,}", _cut(sample.now)) for one, sample in samples]


def _last_samples(path: Path) -> dict[str, _Sample]:
    """Return the answer to each prompt at the last validation.

    Where a run was resumed at an earlier checkpoint, the answers after it are those of its abandoned part.
    """
    if not path.is_file():
        return {}
    found: list[tuple[str, _Sample]] = []
    try:
        text = whole_rows(path.read_bytes()).decode()
        for row in csv.DictReader(io.StringIO(text, newline="")):
            if row["now"] is None or None in row:  # cut, by an earlier version continued by another row
                continue
            sample = _Sample(int(row["step"]), row["before"], row["now"])
            if found and sample.step < found[-1][1].step:
                found = [kept for kept in found if kept[1].step < sample.step]
            found.append((row["prompt"], sample))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"expected generations in {path}, got: {error}; move the file away") from error
    return {prompt: sample for prompt, sample in found if sample.step == found[-1][1].step}


def _cut(text: str) -> str:
    left_out = len(text) - _CHARACTERS
    return text if left_out <= 0 else f"{text[:_CHARACTERS]} … ({left_out:,} more characters)"

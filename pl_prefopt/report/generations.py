"""Sample generations of runs, side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pl_prefopt.errors import DataError
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
    """Return the last answer to each prompt of the last validation."""
    if not path.is_file():
        return {}
    found: dict[str, _Sample] = {}
    try:
        text = path.read_text(encoding="utf-8")
        for row in csv.DictReader(io.StringIO(text, newline="")):
            if row["now"] is not None:  # a line that is being written
                found[row["prompt"]] = _Sample(int(row["step"]), row["before"], row["now"])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"expected generations in {path}, got: {error}; move the file away") from error
    last = max((sample.step for sample in found.values()), default=0)
    return {prompt: sample for prompt, sample in found.items() if sample.step == last}


def _cut(text: str) -> str:
    left_out = len(text) - _CHARACTERS
    return text if left_out <= 0 else f"{text[:_CHARACTERS]} … ({left_out:,} more characters)"

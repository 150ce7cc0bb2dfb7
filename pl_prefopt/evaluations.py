"""``metrics.json``: evaluations with rows, checkpoint and date; ``run.json``: what a training run took."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pl_prefopt.files import atomic_write, changing
from pl_prefopt.metric_info import MetricInfo, current_name

STAGES = ("val", "test")
FACTS = "run.json"
"""The name of the file of ``Facts``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The results of one evaluation. Fields missing in files of earlier versions are ``None``.

    Attributes:
        metrics: the values by name, all of one stage: ``{"val/accuracy": 0.8}``.
        command: ``fit``, ``validate`` or ``test``.
        data: the path or hub name of the rows; of several sources their file or hub names.
        several: whether there are several sources, or named ones.
        held_out: whether the rows were held out from ``data``, the training rows.
        rows: the number of rows.
        part: ``"2 of 10 batches"`` if not all of them were evaluated.
        fingerprint: the fingerprint of the rows and their tokens.
        checkpoint: its path, relative to the run folder if it is in there. ``None`` for the weights that
            ``fit`` was training, and for the policy before training.
        step: the number of optimiser steps of the weights; 0 before training.
        method: the objective with its settings: ``"DPO(beta=0.1)"``.
        throughput: ``tokens_per_second`` and, where it is known, ``mfu`` of the training steps before a
            validation within ``fit``, as last logged.
        described: descriptions of the metrics that the objective or the user adds.
        date: date and time, as ``2026-01-31T12:00:00+00:00``.
    """

    metrics: Mapping[str, float]
    command: str | None = None
    data: str | None = None
    several: bool = False
    held_out: bool = False
    rows: int | None = None
    part: str | None = None
    fingerprint: str | None = None
    checkpoint: str | None = None
    step: int | None = None
    method: str | None = None
    throughput: Mapping[str, float] | None = None
    described: Sequence[MetricInfo] = ()
    date: str | None = None

    @property
    def stage(self) -> str:
        """``val`` or ``test``."""
        return next(iter(self.metrics), "").partition("/")[0]

    @property
    def rows_measured(self) -> str:
        """A readable description of the rows."""
        if self.data is None:
            return "rows that were not recorded"
        name = f"rows held out from {self.data}" if self.held_out else self.data
        count = "" if self.rows is None else f", {self.rows:,} rows"
        return f"{name}{count}{f', {self.part}' if self.part else ''}"

    @property
    def weights(self) -> str:
        """A readable description of the weights."""
        if self.step == 0:
            return "the policy before training"
        if self.step is None:
            return self.checkpoint or "not recorded"
        return f"{self.checkpoint or 'training'}, step {self.step:,}"

    def replaces(self, other: Evaluation) -> bool:
        """Whether this repeats ``other``.

        Of the validations within ``fit``, only the last one is kept, and that before the first step.
        """
        same = all(getattr(self, name) == getattr(other, name) for name in _SAME)
        within_fit = self.command == other.command == "fit" and other.step != 0
        return same and (within_fit or (self.checkpoint, self.step) == (other.checkpoint, other.step))


_SAME = ("stage", "fingerprint", "part", "method")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Duration, hardware and rows of a training run.

    Attributes:
        started: date and time of its first part.
        seconds: how long all its parts took, with their validations, without loading.
        steps: optimiser steps of the weights, those of ``first_step`` included.
        hardware: the devices, such as ``2 × NVIDIA H100``.
        precision: ``trainer.precision``.
        rows: counts of rows by split, ``train`` and ``val``: those of a ``RowsSummary``, and ``unused``, the
            rows without two responses that the objective could compare.
        first_step: the step at which the run began: that of the other run's checkpoint that it was started
            from, else 0.
    """

    started: str
    seconds: float
    steps: int
    hardware: str
    precision: str
    rows: Mapping[str, Mapping[str, int]]
    first_step: int = 0


_COUNTS = ("rows", "responses", "skipped", "unused", "truncated_prompts", "truncated_responses")


def read_facts(path: Path) -> Facts | None:
    """Read ``run.json``; ``None`` if it is missing or corrupt, since nothing depends on it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Facts)}
        facts = Facts(**{name: value for name, value in found.items() if name in known})
        return facts if _is_usable(facts) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_usable(facts: Facts) -> bool:
    """Whether all values have their types, and each split has all counts."""
    texts = (facts.started, facts.hardware, facts.precision)
    if not all(isinstance(text, str) for text in texts) or not isinstance(facts.rows, dict):
        return False
    counts = [split.get(name) for split in facts.rows.values() for name in _COUNTS]
    numbers = (facts.steps, facts.first_step, *counts)
    return all(isinstance(number, int) for number in numbers) and math.isfinite(facts.seconds)


def write_facts(path: Path, facts: Facts) -> None:
    """Write ``run.json``."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_evaluations(path: Path) -> list[Evaluation]:
    """Read ``metrics.json``, oldest evaluation first; an empty list if there is no such file.

    Raises:
        ValueError: if it is corrupt.
    """
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "evaluations" in found:
            return [_parsed(entry) for entry in found["evaluations"]]
        return _of_an_earlier_version(found)
    except (TypeError, AttributeError, KeyError) as error:  # JSON with a different structure
        raise ValueError(f"{type(error).__name__}: {error}") from error


def add_evaluation(path: Path, new: Evaluation) -> None:
    """Add ``new`` to ``metrics.json``, replacing an earlier evaluation of the same kind.

    Commands that evaluate the same run at the same time wait for each other. A corrupt file is renamed rather
    than ending the run.
    """
    with changing(path):
        _add(path, new)


def _add(path: Path, new: Evaluation) -> None:
    try:
        earlier = read_evaluations(path)
    except ValueError:
        path.replace(path.with_suffix(".damaged.json"))
        earlier = []
    kept = [one for one in earlier if not new.replaces(one)]
    text = json.dumps({"evaluations": [_written(one) for one in [*kept, new]]}, indent=2)
    with atomic_write(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def main_evaluation(evaluations: Sequence[Evaluation], stage: str) -> Evaluation | None:
    """Return the evaluation of ``stage`` that represents a run: the newest on the run's own validation rows.

    Those are the rows that ``fit`` validated on, with the objective that it trained. An evaluation of all
    rows takes precedence over one of a part, and trained weights over the policy before training.
    """
    own = {(one.fingerprint, one.method) for one in evaluations if one.command == "fit"}
    candidates = [one for one in evaluations if one.stage == stage]
    ranked = sorted(
        candidates, key=lambda one: ((one.fingerprint, one.method) in own, one.part is None, one.step != 0)
    )
    return ranked[-1] if ranked else None  # the sort is stable


def main_metrics(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the metrics that represent a run, by name: those of its ``main_evaluation`` of each stage."""
    found = (main_evaluation(evaluations, stage) for stage in STAGES)
    return {name: value for one in found if one is not None for name, value in one.metrics.items()}


def _of_an_earlier_version(found: Mapping[str, Any]) -> list[Evaluation]:
    """Read the metrics of the last validation and test, whose rows were not recorded."""
    numbers = _numbers(found.items())
    stages = [{name: numbers[name] for name in numbers if name.startswith(f"{stage}/")} for stage in STAGES]
    return [Evaluation(metrics=metrics) for metrics in stages if metrics]


def _parsed(entry: Mapping[str, Any]) -> Evaluation:
    known = {field.name for field in fields(Evaluation)}  # later versions may write more fields
    settings = {name: value for name, value in entry.items() if name in known}
    settings["described"] = tuple(_described(one) for one in entry.get("described", ()))
    return Evaluation(**{**settings, "metrics": _numbers(entry["metrics"].items())})


def _described(entry: Mapping[str, Any]) -> MetricInfo:
    known = {field.name for field in fields(MetricInfo)}
    settings = {name: value for name, value in entry.items() if name in known}
    return MetricInfo(**{**settings, "range": tuple(settings["range"])})


def _written(one: Evaluation) -> dict[str, Any]:
    entry = {name: value for name, value in asdict(one).items() if value is not None and value != ()}
    return {**entry, "metrics": dict(sorted(one.metrics.items()))}


def _numbers(items: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    return {current_name(str(name)): float(value) for name, value in items}

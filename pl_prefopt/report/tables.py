"""The tables of a report: metrics, settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pl_prefopt.metrics.suite import METRIC_HELP
from pl_prefopt.report.runs import Run

MAIN = (
    "accuracy",
    "margin",
    "pearson",
    "spearman",
    "kendall",
    "ranking_accuracy",
    "best_of_n",
    "length_bias",
    "kl_0",
    "loss",
)
"""The metrics of the main table, where measured; all others are in the long one."""

_SHARES = ("accuracy", "ranking_accuracy", "best_of_n")
_NATS = ("margin", "reward", "logp", "kl_", "marginal_")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table.

    Attributes:
        text: the number, as people read it.
        interval: its 95 % interval, or nothing.
        order: what a sort goes by; empty sorts last.
    """

    text: str = "–"
    interval: str = ""
    order: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric: its name, unit and meaning."""

    name: str
    unit: str
    help: str


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Runs by metrics, of one stage.

    Attributes:
        stage: ``test`` or ``val``.
        columns: the metrics that at least one run has.
        rows: one list of cells a run.
    """

    stage: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def metric_tables(runs: Sequence[Run], *, everything: bool = False) -> list[MetricTable]:
    """Return a table for each of test and validation that any run has numbers of."""
    tables = []
    for stage in ("test", "val"):
        measured = {name.removeprefix(f"{stage}/") for run in runs for name in _of_stage(run, stage)}
        rest = sorted(name for name in measured - set(MAIN) if not name.endswith(("_low", "_high")))
        names = [name for name in MAIN if name in measured] + (rest if everything else [])
        if names:
            columns = [Column(name, unit_of(name), help_of(name)) for name in names]
            rows = [[metric_cell(run, stage, name) for name in names] for run in runs]
            tables.append(MetricTable(stage, columns, rows))
    return tables


def metric_cell(run: Run, stage: str, name: str) -> Cell:
    """Return a run's metric with its interval, where it has them."""
    return _cell(run.metrics, stage, name)


def _cell(metrics: Mapping[str, float], stage: str, name: str) -> Cell:
    value, low, high = (metrics.get(f"{stage}/{name}{end}") for end in ("", "_low", "_high"))
    if value is None or not math.isfinite(value):
        return Cell()
    interval = ""
    if low is not None and high is not None:
        interval = f"{_number(name, low)} to {_number(name, high)}"
    unit = " %" if unit_of(name) == "%" else ""
    return Cell(_number(name, value) + unit, interval, repr(value))


def best_stage(run: Run) -> str | None:
    """Return the stage to show a run's numbers of: test before validation."""
    return next((stage for stage in ("test", "val") if _of_stage(run, stage)), None)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting, and what each run has there; ``None`` where it has no such setting."""

    key: str
    values: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation of a run, and what was measured when on what."""

    run: str
    what: str
    rows: str
    weights: str
    date: str
    numbers: Sequence[Cell]


EVALUATED = ("loss", "accuracy", "margin")
"""The metrics in the table of all evaluations."""


def evaluations(runs: Sequence[Run]) -> list[EvaluationRow]:
    """Return all evaluations of all runs, also those whose numbers the other tables don't have."""
    return [
        EvaluationRow(
            run.name,
            f"{one.command or 'not recorded'}{f', {one.method}' if one.method else ''}",
            one.rows_measured,
            one.weights,
            one.date or "–",
            [_cell(one.metrics, one.stage, name) for name in EVALUATED],
        )
        for run in runs
        for one in run.evaluations
    ]


def all_settings(runs: Sequence[Run]) -> list[SettingRow]:
    """Return every setting of every run."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [SettingRow(key, [run.settings.get(key) for run in runs]) for key in sorted(keys)]


def differing(rows: Iterable[SettingRow]) -> list[SettingRow]:
    """Return the settings in which the runs differ."""
    return [row for row in rows if len(set(row.values)) > 1]


def unit_of(name: str) -> str:
    """Return a metric's unit: per cent, nats, or nothing for a correlation."""
    if name.startswith(_SHARES):
        return "%"
    return "nats" if any(part in name for part in _NATS) else ""


def help_of(name: str) -> str:
    """Return the sentence that explains a metric; nothing for one that an objective adds."""
    if name == "loss":
        return "Mean over prompts of the objective's loss."
    known = METRIC_HELP.get(name) or METRIC_HELP.get(re.sub(r"_\d+$", "_k", name))
    return known or METRIC_HELP.get(re.sub(r"^(accuracy|margin)_\w+$", r"\1_v", name), "")


def _of_stage(run: Run, stage: str) -> list[str]:
    return [name for name in run.metrics if name.startswith(f"{stage}/")]


def _number(name: str, value: float) -> str:
    if unit_of(name) == "%":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"

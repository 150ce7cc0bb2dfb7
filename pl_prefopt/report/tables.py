"""The tables of a report: metrics, settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pl_prefopt.metric_info import MetricInfo, find_info, grouped
from pl_prefopt.metrics import REGISTRY
from pl_prefopt.report.runs import Run


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
        rows: one list of cells per run.
        before: the same of the policy before training, where it was measured on the same rows; else ``None``.
    """

    stage: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    before: Sequence[Sequence[Cell] | None]


def metric_tables(runs: Sequence[Run], *, everything: bool = False) -> list[MetricTable]:
    """Return a table for each of test and validation that any run has numbers of."""
    infos = tuple(dict.fromkeys(info for run in runs for info in run.infos))
    tables = []
    for stage in ("test", "val"):
        measured = {name.removeprefix(f"{stage}/") for run in runs for name in _of_stage(run, stage)}
        values = {name for name in measured if not name.endswith(("_low", "_high"))}
        names = _ordered(values, infos, everything=everything)
        if names:
            columns = [column_of(name, infos) for name in names]
            rows = [[metric_cell(run, stage, name) for name in names] for run in runs]
            before = [_before(run, stage, names) for run in runs]
            tables.append(MetricTable(stage, columns, rows, before))
    return tables


def _before(run: Run, stage: str, names: Sequence[str]) -> list[Cell] | None:
    found = run.before_training(stage)
    if found is None:
        return None
    return [_cell(found.metrics, stage, column_of(name, run.infos)) for name in names]


def _ordered(names: Iterable[str], infos: Sequence[MetricInfo], *, everything: bool) -> list[str]:
    """Return the metrics of the main table, where measured, and of the long one all others after them."""
    ordered = [name for members in grouped(names, infos).values() for name in members]
    found = {name: find_info(name, infos) for name in ordered}
    main = [name for name, info in found.items() if info is not None and info.headline]
    return main + ([name for name in ordered if name not in main] if everything else [])


def metric_cell(run: Run, stage: str, name: str) -> Cell:
    """Return a run's metric with its interval, where it has them."""
    return _cell(run.metrics, stage, column_of(name, run.infos))


def _cell(metrics: Mapping[str, float], stage: str, column: Column) -> Cell:
    name, unit = column.name, column.unit
    value, low, high = (metrics.get(f"{stage}/{name}{end}") for end in ("", "_low", "_high"))
    if value is None or math.isnan(value):
        return Cell()
    interval = ""
    if low is not None and high is not None:
        interval = f"{_number(unit, low)} to {_number(unit, high)}"
    return Cell(_number(unit, value) + (" %" if unit == "%" else ""), interval, repr(value))


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


EVALUATED = tuple(info.name for info in REGISTRY if info.progress_bar)
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
            [_cell(one.metrics, one.stage, column_of(name, run.infos)) for name in EVALUATED],
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


def column_of(name: str, infos: Sequence[MetricInfo]) -> Column:
    """Return the column of a metric; one that nothing is known of has a name alone."""
    info = find_info(name, infos)
    if info is None:
        return Column(name, "", "")
    better = "" if info.better == "none" else f" {info.better.capitalize()} is better."
    return Column(name, info.unit, info.help + better)


def _of_stage(run: Run, stage: str) -> list[str]:
    return [name for name in run.metrics if name.startswith(f"{stage}/")]


def _number(unit: str, value: float) -> str:
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"

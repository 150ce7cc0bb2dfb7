"""Which curves belong on one plot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from pl_prefopt.callbacks.publishing import Layout, publish_layout
from pl_prefopt.callbacks.throughput import Throughput
from pl_prefopt.metric_info import MetricInfo

_RUN = {
    "tokens per second": ("train/tokens_per_second$", Throughput),
    "learning rate": ("lr-", LearningRateMonitor),
}
"""Curves that are no metrics, each with the callback that logs it."""


def layout_of(infos: Sequence[MetricInfo], callbacks: Iterable[Callback] = ()) -> Layout:
    """Return category → plot → patterns of curves, regular expressions for the beginning of a name.

    Metrics of one group are on one page, those with the same ``plot`` on one plot. A metric with a plot of
    its own has training and validation on it; where several share one, each stage has its own.
    """
    plots: dict[str, dict[str, list[MetricInfo]]] = {}
    for info in infos:
        plots.setdefault(info.group, {}).setdefault(info.plot or info.label, []).append(info)
    pages: Layout = {
        _sentence(group): {
            title: patterns
            for plot, members in found.items()
            for title, patterns in _charts(plot, members).items()
        }
        for group, found in plots.items()
    }
    present = tuple(callbacks)
    of_run = {
        plot: [pattern]
        for plot, (pattern, logs) in _RUN.items()
        if any(isinstance(one, logs) for one in present)
    }
    return {**pages, "Run": of_run} if of_run else pages


def _charts(plot: str, members: Sequence[MetricInfo]) -> Mapping[str, list[str]]:
    stages = {"train": "training", "val": "validation"}
    curves = {
        stage: [f"{stage}/{info.pattern}$" for info in members if info.is_logged_in(stage)]
        for stage in stages
    }
    if len(members) == 1 or not curves["train"]:
        return {plot: [pattern for found in curves.values() for pattern in found]}
    return {f"{plot}, {stages[stage]}": found for stage, found in curves.items() if found}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


class DashboardLayout(Callback):
    """Gives TensorBoard its Custom Scalars page: what is to be compared is on one plot.

    Other dashboards arrange curves by name, and get nothing from this. TensorBoard reads only the first
    layout, so it is written after the first validation, when it is known which metrics the rows have.

    Args:
        layout: category → chart → patterns of the curves; by default ``layout_of`` what the run has logged.
    """

    def __init__(self, layout: dict[str, dict[str, list[str]]] | None = None) -> None:
        self.layout: Layout | None = layout
        self._published = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a layout that was given."""
        self._published = False
        if self.layout is not None:
            self._publish(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout once, at the first validation of a ``fit`` that has logged training metrics."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step:
            self._publish(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout of a run without a validation."""
        self._publish(trainer, pl_module)

    def _publish(self, trainer: Any, module: Any) -> None:
        if self._published or not trainer.is_global_zero:
            return
        self._published = True
        layout = self.layout or layout_of(_logged_by(module, trainer.callback_metrics), trainer.callbacks)
        for logger in trainer.loggers:
            publish_layout(logger, layout)


def _logged_by(module: Any, logged: Iterable[str]) -> list[MetricInfo]:
    """Return what this run logs: no metrics of references, pairs or grades where there are none.

    Numbers of the objective are all included, since training may log them later than the first validation.
    """
    names = [name.partition("/")[2] for name in logged]
    return [
        info
        for info in module.metric_info
        if info in module.objective.stats or any(re.fullmatch(info.pattern, name) for name in names)
    ]

"""Which curves belong on one plot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.callbacks.publishing import Layout, publish_layout
from pl_prefopt.metric_info import MetricInfo

_RUN = {
    "tokens per second": ["train/tokens_per_second$"],
    "learning rate": ["lr-"],
}


def layout_of(infos: Sequence[MetricInfo]) -> Layout:
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
    return {**pages, "Run": _RUN}


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

    Other dashboards arrange curves by name, and get nothing from this.

    Args:
        layout: category → chart → patterns of the curves; by default ``layout_of`` all that the module logs.
    """

    def __init__(self, layout: dict[str, dict[str, list[str]]] | None = None) -> None:
        self.layout: Layout | None = layout

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout once."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                publish_layout(logger, self.layout or layout_of(_logged_by(pl_module)))


def _logged_by(module: Any) -> list[MetricInfo]:
    """Return what this run logs: a metric for each reference is none without references."""
    names = [name.partition("/")[2] for suite in module.suites.values() for name in suite]
    return [
        info
        for info in module.metric_info
        if info in module.objective.stats or any(re.fullmatch(info.pattern, name) for name in names)
    ]

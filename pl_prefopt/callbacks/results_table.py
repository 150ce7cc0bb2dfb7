"""A table of an evaluation's metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from pl_prefopt.metric_info import MetricInfo, grouped
from pl_prefopt.metrics import REGISTRY

_LOW, _HIGH = "_low", "_high"


class ResultsTable(Callback):
    """Prints a table at the end of ``validate`` and ``test``; after ``fit``, one of its last validation.

    Metrics are grouped and ordered as in the registry; those of a test have their 95 % intervals.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of ``validate``; in ``fit``, keep its metrics for the end."""
        if trainer.sanity_checking:
            return
        self._last = _numbers(trainer, "val/")
        if trainer.state.fn == "validate":
            _print(trainer, pl_module, "Validation", self._last)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of ``test``."""
        _print(trainer, pl_module, "Test", _numbers(trainer, "test/"))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of the last validation."""
        _print(trainer, pl_module, "Last validation", self._last)


def results_table(title: str, numbers: Mapping[str, float], infos: Sequence[MetricInfo] = REGISTRY) -> Table:
    """Return the table of metrics, named without their stage; ``X_low`` and ``X_high`` are X's interval."""
    intervals = {
        name: f"{low:.4g} to {numbers[name + _HIGH]:.4g}"
        for name in numbers
        if (low := numbers.get(name + _LOW)) is not None and name + _HIGH in numbers
    }
    ends = {name + end for name in intervals for end in (_LOW, _HIGH)}
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95 % interval", justify="right")
    for group, names in grouped(set(numbers) - ends, infos).items():
        table.add_section()
        table.add_row(f"[dim]{group}[/dim]")
        for name in names:
            interval = [intervals.get(name, "")] if intervals else []
            table.add_row(f"  {name}", f"{numbers[name]:.4g}", *interval)
    return table


def _numbers(trainer: Trainer, prefix: str) -> dict[str, float]:
    found = trainer.callback_metrics.items()
    return {name.removeprefix(prefix): float(value) for name, value in found if name.startswith(prefix)}


def _print(trainer: Trainer, module: Any, title: str, numbers: Mapping[str, float]) -> None:
    if not numbers or not trainer.is_global_zero:
        return
    console = Console()
    with console.capture() as captured:
        console.print(results_table(title, numbers, module.metric_info))
    # Plain `print`, which an active progress bar redirects above itself.
    print(captured.get(), end="")

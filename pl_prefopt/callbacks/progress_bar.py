"""Progress of a run: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    ProcessingSpeedColumn,
    RichProgressBarTheme,
)
from rich import get_console
from rich.progress import TextColumn, TimeRemainingColumn

from pl_prefopt.callbacks.throughput import MFU, TOKENS_PER_SECOND
from pl_prefopt.metrics import REGISTRY

_SHOWN = tuple(info.name for info in REGISTRY if info.progress_bar)
_SHORT = {**{f"train/{name}": name for name in _SHOWN}, TOKENS_PER_SECOND: "tokens/s", MFU: "MFU"}
_FORMAT = ".4g"
_WIDTH = 80
_DESCRIPTION, _TIME, _SPEED, _GAPS = 10, 7, 9, 5
"""The width of the bar's line without the bar, the count and the metrics."""


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with short names, in one line.

    Loss, accuracy, margin, tokens/s and MFU come first. Values are those last logged; metrics that don't fit
    into the line are left out. Where the output is not a terminal, such as a log file, lines are printed
    instead: after steps at which training metrics were logged, at validations and at the end.

    Args:
        refresh_rate: how often per second the bar is drawn; 0 switches bar and lines off.
        seconds: the minimum time between two lines.
    """

    def __init__(self, refresh_rate: int = 1, *, seconds: float = 10.0) -> None:
        super().__init__(refresh_rate, theme=RichProgressBarTheme(metrics_format=_FORMAT))
        self.lines = ProgressLines(seconds)

    @property
    def is_enabled(self) -> bool:
        """Whether there is a bar."""
        return self._is_wanted and _shows_bars()

    @property
    def _prints_lines(self) -> bool:
        return self._is_wanted and not _shows_bars()

    @property
    def _is_wanted(self) -> bool:
        return self._enabled and self.refresh_rate > 0

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the bar's columns, which leave room for the metrics in 80 characters."""
        theme = self.theme
        return [
            TextColumn("[progress.description]{task.description}"),
            CustomBarColumn(
                bar_width=_bar_width(),
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=theme.batch_progress),
            TimeRemainingColumn(elapsed_when_finished=True),
            ProcessingSpeedColumn(style=theme.processing_speed),
        ]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics that fit into the line next to the bar."""
        found = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        first = {short: found.pop(name) for name, short in _SHORT.items() if name in found}
        count = 2 * len(str(self.total_train_batches)) + 1
        room = get_console().width - _bar_width() - _DESCRIPTION - count - _TIME - _SPEED - _GAPS
        shown = {}
        for name, value in {**first, **found}.items():
            room -= len(f"{name}: {value:{_FORMAT}} ")
            if room < 0:
                break
            shown[name] = value
        return shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing."""
        super().on_train_start(trainer, pl_module)
        self.lines.start(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Print the line of the previous step, whose metrics are logged by now."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._prints_lines:
            self.lines.step(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the previous step."""
        super().on_validation_start(trainer, pl_module)
        self.lines.start_batches()
        if self._prints_lines and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.lines.step(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Print the progress of a long validation."""
        super().on_validation_batch_end(trainer, *args, **kwargs)
        if self._prints_lines and not trainer.sanity_checking:
            self.lines.batch("Validation", sum(trainer.num_val_batches))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the validation's metrics."""
        super().on_validation_end(trainer, pl_module)
        if self._prints_lines and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.lines.validated(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing."""
        super().on_test_start(trainer, pl_module)
        self.lines.start_batches()

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Print the progress of a long test."""
        super().on_test_batch_end(trainer, *args, **kwargs)
        if self._prints_lines:
            self.lines.batch("Test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing."""
        super().on_predict_start(trainer, pl_module)
        self.lines.start_batches()

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Print the progress of a long prediction."""
        super().on_predict_batch_end(trainer, *args, **kwargs)
        if self._prints_lines:
            self.lines.batch("Prediction", sum(trainer.num_predict_batches))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last step's line."""
        super().on_train_end(trainer, pl_module)
        if self._prints_lines:
            self.lines.step(trainer, last=True)


class ProgressLines:
    """Lines for logs, at most one every few seconds.

    Args:
        seconds: the minimum time between two lines.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._first_step, self._began = 0, 0.0
        self._told_step, self._told_at = 0, float("-inf")
        self._batches, self._batches_began = 0, 0.0

    def start(self, step: int) -> None:
        """Start timing training, after ``step`` optimiser steps."""
        self._first_step = self._told_step = step
        self._began, self._told_at = time.monotonic(), float("-inf")

    def step(self, trainer: Trainer, *, last: bool = False) -> None:
        """Print a line if the training metrics were logged since the last one, or if this is the end."""
        step, settings = trainer.global_step, trainer
        every: int = settings.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = bool(every) and step // every > self._told_step // every
        if step == self._told_step or not (last or (is_logged and self._is_time())):
            return
        self._told_step = step
        numbers = trainer.callback_metrics
        speed, used = numbers.get(TOKENS_PER_SECOND), numbers.get(MFU)
        done = step - self._first_step
        passed = time.monotonic() - self._began
        parts = [
            *_numbers(numbers, "train/", _SHOWN[:2]),  # a line has 80 characters
            f"{done / max(passed, 1e-9):.3g} steps/s" if speed is None else f"{float(speed):.0f} tokens/s",
        ]
        total = trainer.estimated_stepping_batches
        if total != float("inf"):
            parts.append(f"{_clock((total - step) * passed / done)} left")
        with_use = [*parts[:3], f"{float(used or 0):.0%} MFU", *parts[3:]]
        lines = [f"{_place(trainer)}: {', '.join(each)}" for each in (with_use, parts)]
        self._tell(lines[0] if used is not None and len(lines[0]) <= _WIDTH else lines[1])

    def validated(self, trainer: Trainer) -> None:
        """Print the metrics of a validation within ``fit``."""
        parts = _numbers(trainer.callback_metrics, "val/", _SHOWN)
        self._tell(f"{_place(trainer)}, validation: {', '.join(parts)}")

    def start_batches(self) -> None:
        """Start timing a loop of batches."""
        self._batches, self._batches_began = 0, time.monotonic()
        self._told_at = max(self._told_at, self._batches_began)

    def batch(self, what: str, total: float) -> None:
        """Count a batch, and print a line if one is due."""
        self._batches += 1
        if not self._is_time() or self._batches >= total:
            return
        left = (total - self._batches) * (time.monotonic() - self._batches_began) / self._batches
        self._tell(f"{what}: batch {self._batches} of {total:.0f}, {_clock(left)} left")

    def _is_time(self) -> bool:
        return time.monotonic() - self._told_at >= self.seconds

    def _tell(self, line: str) -> None:
        self._told_at = time.monotonic()
        print(line, flush=True)


def _shows_bars() -> bool:
    """Whether the output is a terminal or a notebook."""
    console = get_console()
    return console.is_terminal or console.is_jupyter


def _bar_width() -> int:
    return max(8, min(40, get_console().width - 70))


def _place(trainer: Trainer) -> str:
    total = trainer.estimated_stepping_batches
    return f"Step {trainer.global_step}" + (f" of {total:.0f}" if total != float("inf") else "")


def _numbers(found: Mapping[str, Any], stage: str, names: tuple[str, ...]) -> list[str]:
    return [f"{name} {float(found[stage + name]):{_FORMAT}}" for name in names if stage + name in found]


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(max(seconds, 0.0))))

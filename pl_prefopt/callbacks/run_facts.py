"""Duration, hardware and rows of a training run, as a file."""

from __future__ import annotations

import dataclasses
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.data import PreferenceDataModule, datamodule_of
from pl_prefopt.evaluations import FACTS, Facts, read_facts, write_facts
from pl_prefopt.objectives import Objective


class RunFacts(Callback):
    """Writes ``run.json`` at the start of a ``fit``, at each validation, and at the end.

    The duration includes validations and, of a resumed run, its earlier parts. Loading is not included.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / FACTS
        self._since = 0.0
        self._earlier: Facts | None = None
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed run continues that of its earlier parts."""
        self._since = time.monotonic()
        self._earlier = read_facts(self._path) if trainer.global_step else None
        # This run's file may be missing or damaged.
        begun = 0 if self._is_own(trainer.ckpt_path) else trainer.global_step
        self._first_step = self._earlier.first_step if self._earlier else begun
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the duration so far, so that a killed run has it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the duration."""
        self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the duration of a run that ends early, if it has begun."""
        if self._since:
            self._write(trainer, pl_module)

    def _is_own(self, checkpoint: Any) -> bool:
        """Whether a checkpoint is this run's, and not another's that it was started from."""
        folder = self._path.parent.resolve()
        return checkpoint is not None and Path(checkpoint).resolve().is_relative_to(folder)

    def _write(self, trainer: Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        now, earlier = time.monotonic(), self._earlier
        started = datetime.now(UTC).timestamp() - (now - self._since)
        facts = Facts(
            started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            seconds=now - self._since,
            steps=trainer.global_step,
            hardware=_hardware(trainer.strategy.root_device, trainer.world_size),
            precision=str(trainer.precision),
            rows=_rows(datamodule_of(trainer), module.objective),
            first_step=self._first_step,
        )
        if earlier is not None:
            facts = dataclasses.replace(
                facts, started=earlier.started, seconds=earlier.seconds + facts.seconds
            )
        write_facts(self._path, facts)


def _hardware(device: torch.device, ranks: int) -> str:
    """Return the devices, such as ``2 × NVIDIA H100``; several nodes are taken to be alike."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU ({os.cpu_count()} cores)" if device.type == "cpu" else device.type.upper()
    return f"{ranks} × {name}" if ranks > 1 else name


def _rows(datamodule: Any, objective: Objective) -> dict[str, dict[str, int]]:
    """Return the counts of training and validation rows; nothing for a user's own data module."""
    if not isinstance(datamodule, PreferenceDataModule):
        return {}
    found: dict[str, dict[str, int]] = {}
    for split in ("train", "val"):
        if split in datamodule.datasets:
            summary = datamodule.datasets[split].summary
            compares = objective.needs.min_responses >= 2
            unused = summary.rows - summary.comparable if compares else 0
            found[split] = {**dataclasses.asdict(summary), "unused": unused}
    return found

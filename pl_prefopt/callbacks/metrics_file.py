"""Evaluations as a file."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from pl_prefopt.callbacks.throughput import MFU, TOKENS_PER_SECOND
from pl_prefopt.data import PreferenceDataModule, datamodule_of
from pl_prefopt.evaluations import Evaluation, add_evaluation
from pl_prefopt.metric_info import MetricInfo, find_info
from pl_prefopt.metrics import REGISTRY
from pl_prefopt.objectives.base import plain_settings


class MetricsFile(Callback):
    """Writes each validation and test to ``metrics.json``: numbers, rows, checkpoint, date.

    Evaluations of different rows or checkpoints are kept side by side; repeating one replaces the earlier
    entry.

    Args:
        folder: the run's, where the file goes.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics that begin with ``val/``."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics that begin with ``test/``."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: Any, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        command = None if trainer.state.fn is None else trainer.state.fn.value
        evaluation = Evaluation(
            metrics={name: value for name, value in measured.items() if name.startswith(f"{stage}/")},
            command=command,
            part=_part(trainer, stage),
            method=_method(module),
            throughput=_throughput(measured) if command == "fit" else None,
            described=_described(module, measured, stage),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            **_rows(datamodule_of(trainer), stage),
            **self._weights(trainer, module, command),
        )
        add_evaluation(self.folder / "metrics.json", evaluation)

    def _weights(self, trainer: Trainer, module: Any, command: str | None) -> dict[str, Any]:
        if command == "fit":
            return {"step": trainer.global_step}
        if trainer.ckpt_path is None:
            return {"step": 0}
        path, folder = Path(trainer.ckpt_path).resolve(), self.folder.resolve()
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
        return {"checkpoint": name, "step": module.restored_step}


def _throughput(measured: Mapping[str, float]) -> dict[str, float] | None:
    names = (TOKENS_PER_SECOND, MFU)
    found = {name.removeprefix("train/"): measured[name] for name in names if name in measured}
    return found or None


def _rows(datamodule: Any, split: str) -> dict[str, Any]:
    """Describe the rows; nothing for those of a user's own data module."""
    if not isinstance(datamodule, PreferenceDataModule):
        return {}
    dataset, held_out = datamodule.datasets[split], split not in datamodule.sources
    sources = datamodule.sources["train" if held_out else split]
    return {
        "data": sources.path,
        "several": len(sources) > 1 or bool(sources.names),
        "held_out": held_out,
        "rows": len(dataset),
        "fingerprint": dataset.fingerprint,
    }


def _part(trainer: Trainer, stage: str) -> str | None:
    """Return how many of the batches were measured, if not all."""
    val = stage == "val"
    loader: Any = trainer.val_dataloaders if val else trainer.test_dataloaders
    if not isinstance(loader, DataLoader):
        return None
    counts = trainer.num_val_batches if val else trainer.num_test_batches
    done, there = sum(counts), len(loader)
    return f"{int(done)} of {there} batches" if done < there else None


def _described(module: Any, measured: Mapping[str, float], stage: str) -> tuple[MetricInfo, ...]:
    """Return the measured values that are not in the registry, which every version knows."""
    names = [name.removeprefix(f"{stage}/") for name in measured if name.startswith(f"{stage}/")]
    found = (find_info(name, module.metric_info) for name in names)
    return tuple(dict.fromkeys(info for info in found if info is not None and info not in REGISTRY))


def _method(module: Any) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in plain_settings(module.objective).items())
    return f"{type(module.objective).__name__}({settings})"

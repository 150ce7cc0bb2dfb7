"""TensorBoard's logger, with the curves of chosen and rejected responses in different colours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

SIDES = ("chosen", "rejected")
SHARED = ("reward", "logp")
"""What is logged of both: ``val/chosen_reward`` is also ``val/reward`` of the run ``chosen``."""


class PairedTensorBoard(TensorBoardLogger):
    """Logs to TensorBoard, and what chosen and rejected responses share also as two runs of the same curve.

    TensorBoard gives each run one colour, so that chosen and rejected rewards of one run look alike. The two
    further runs are the folders ``chosen`` and ``rejected`` inside the run's.
    """

    _sides: dict[str, SummaryWriter] | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics, those of a side twice."""
        super().log_metrics(metrics, step)
        for name, value in metrics.items():
            stage, _, last = name.rpartition("/")
            side, _, what = last.partition("_")
            if side in SIDES and what in SHARED:
                self._writer(side).add_scalar(f"{stage}/{what}", value, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered."""
        super().save()
        for writer in (self._sides or {}).values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files."""
        super().finalize(status)
        for writer in (self._sides or {}).values():
            writer.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files, as Lightning does."""
        return {**super().__getstate__(), "_sides": None}

    def _writer(self, side: str) -> SummaryWriter:
        self._sides = self._sides or {}
        if side not in self._sides:
            self._sides[side] = SummaryWriter(str(Path(self.log_dir) / side))
        return self._sides[side]

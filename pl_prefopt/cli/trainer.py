"""The trainer of the commands."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class PrefOptTrainer(Trainer):
    """Lightning's trainer with a log folder that is independent of loggers, and with ``precompute``.

    Attributes:
        logs: the run folder, or the folder of an evaluation in it.
    """

    logs: Path | None = None

    @property
    def log_dir(self) -> str | None:
        """The folder of the run's files; without ``logs``, Lightning's default: that of its first logger."""
        return super().log_dir if self.logs is None else str(self.logs)

    def precompute(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Score the training and validation rows with every reference and store the log-probs.

        Args:
            model: the module whose policy the references belong to.
            datamodule: the rows.
        """
        # References precompute when a fit starts, on every rank, with the policy set up.
        self.fit_loop.epoch_loop.max_steps = 0
        self.fit(model, datamodule=datamodule)

"""The trainer behind the commands."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class PrefOptTrainer(Trainer):
    """Lightning's trainer, whose logs' folder depends on no logger, and which can stop before the first step.

    Attributes:
        logs: the run's folder, or that of an evaluation in it.
    """

    logs: Path | None = None

    @property
    def log_dir(self) -> str | None:
        """The folder of the run's own files; without ``logs`` Lightning's, which is its first logger's."""
        return super().log_dir if self.logs is None else str(self.logs)

    def precompute(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Score the training and validation rows with every reference, keep the log-probs, and train nothing.

        Args:
            model: the module whose policy the references go with.
            datamodule: the rows.
        """
        # References that precompute do so when a fit starts, in all processes, with the policy in place.
        self.fit_loop.epoch_loop.max_steps = 0
        self.fit(model, datamodule=datamodule)

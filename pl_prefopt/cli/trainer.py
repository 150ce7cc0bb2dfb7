"""The trainer behind the commands."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class PrefOptTrainer(Trainer):
    """Lightning's trainer, which can also stop before the first step."""

    def precompute(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Score the training and validation rows with every reference, keep the log-probs, and train nothing.

        Args:
            model: the module whose policy the references go with.
            datamodule: the rows.
        """
        # References that precompute do so when a fit starts, in all processes, with the policy in place.
        self.fit_loop.epoch_loop.max_steps = 0
        self.fit(model, datamodule=datamodule)

"""A validation before the first step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FirstValidation(Callback):
    """Validates before the first step of a ``fit``, which gives the numbers of the policy before training.

    It is a validation like the later ones, and early stopping counts it, but it saves no checkpoint. A
    resumed run doesn't repeat it.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, as Lightning does within an epoch, once every callback has seen the start of training."""
        if trainer.global_step or not trainer.enable_validation:
            return
        loops: Any = trainer
        connector = loops._logger_connector
        first_iteration = connector._first_loop_iter
        loops.validating = True  # the loop that values are logged to
        loops.fit_loop.epoch_loop.val_loop.run()
        loops.training = True
        connector._first_loop_iter = first_iteration

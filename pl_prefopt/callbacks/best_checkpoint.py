"""The checkpoint with the best value of a metric."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from pl_prefopt.errors import ConfigError, suggest


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which warns instead of raising if its metric is missing.

    A metric without any value isn't logged, such as the accuracy over pairs in rows with one
    response each: then a warning says so, and no best checkpoint is chosen. A misspelt name is refused after
    the sanity check: one that wasn't logged there, isn't in the registry (whose metrics may need more rows),
    and resembles a known one. Any other name may be logged by a custom callback later.
    """

    _warned = False
    _before_training = False  # whether the metric's value is that of a validation before the first step

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a ``ConfigError`` that suggests the closest metric if the name is misspelt."""
        if self.monitor is None or self.monitor.startswith("train/"):  # not logged yet
            return
        module: Any = pl_module
        known = {*trainer.callback_metrics, *module.logged_in("val")}
        hint = suggest(self.monitor, known, cutoff=0.65)  # "val/bleu" is no misspelt "val/loss"
        if self.monitor not in known and hint:
            raise ConfigError(
                f"nothing logs `best.monitor`, '{self.monitor}', in a validation{hint} If it is logged only "
                "later, add `--trainer.num_sanity_val_steps 0`."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the best checkpoint after a validation."""
        if not trainer.sanity_checking:
            self._before_training = not trainer.global_step and self.monitor in trainer.callback_metrics
        if trainer.sanity_checking or self._is_measured(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update at an epoch's end, if configured; without a warning before the first validation.

        A value from before the first step is not that of the weights that would be saved.
        """
        if self._before_training:
            return
        waits = str(self.monitor).startswith("val/")
        validated = any(name.startswith("val/") for name in trainer.callback_metrics)
        if (validated or not waits) and self._is_measured(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def _is_measured(self, trainer: Trainer) -> bool:
        measured: dict[str, Any] = trainer.callback_metrics
        if self.monitor is None or self.monitor in measured:
            return True
        if not self._warned:
            rank_zero_warn(
                f"No best checkpoint is chosen: '{self.monitor}' was not measured"
                f"{suggest(self.monitor, measured) or '.'} Set `best.monitor` and `best.mode` to another "
                f"metric: {', '.join(sorted(name for name in measured if name.startswith('val/')))}."
            )
            self._warned = True
        return False

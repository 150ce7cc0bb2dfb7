"""The learning rate that a search finds, and the run that uses it."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pl_prefopt.errors import ConfigError

BASE_RATE = "initial_lr"  # torch's name for what the schedule scales


def base_rate(optimizer: Optimizer) -> float:
    """Return the rate that the schedule scales."""
    return float(optimizer.param_groups[0][BASE_RATE])


def set_base_rate(optimizer: Optimizer, scheduler: LRScheduler, rate: float) -> None:
    """Give an optimiser and its schedule the rates that they would have, had ``rate`` been configured.

    Args:
        optimizer: whose groups all get it.
        scheduler: of the optimiser, wherever it stands.
        rate: what the schedule scales.
    """
    scheduler.base_lrs = [rate for _ in optimizer.param_groups]
    for number, group in enumerate(optimizer.param_groups):
        scale = scheduler.lr_lambdas[number](scheduler.last_epoch) if isinstance(scheduler, LambdaLR) else 1.0
        group[BASE_RATE], group["lr"] = rate, rate * scale


class RememberedLearningRate(LearningRateFinder):
    """What a ``LearningRateFinder`` becomes in a run: one whose rate stays when the run is resumed.

    The search's steps are undone, and leave no trace in the metrics.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, unless the run resumes: its checkpoint has the rate."""
        if trainer.ckpt_path is None:
            super().on_fit_start(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, and say what was found.

        Raises:
            ConfigError: if the search is too short to suggest anything.
        """
        module: Any = pl_module
        with module.trying():
            super().lr_find(trainer, pl_module)
        trainer._logger_connector.reset_metrics()  # those of the search
        if self.optimal_lr is None or not self._update_attr:
            return
        found = self.optimal_lr.suggestion()
        if found is None:
            losses = self.optimal_lr.results["loss"]
            finite = sum(math.isfinite(loss) for loss in losses)
            raise ConfigError(
                f"LearningRateFinder suggests no learning rate: {finite} of the {len(losses)} losses that it "
                "saw are finite, and the first 10 and the last don't count. It searches no longer than the "
                "run: raise num_training_steps and trainer.max_epochs, or lower max_lr."
            )
        rank_zero_info(
            f"The learning rate is {found:.6g}, as LearningRateFinder suggests, not the configured one."
        )

"""Checkpoints between accumulated batches, whose gradients aren't saved: the optimiser step is repeated."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from pl_prefopt.data import PreferenceDataModule, batches_since_step, datamodule_of

_KEY = "pl_prefopt_unfinished_step"


def restart_step(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Reset a checkpoint's counters to its last optimiser step.

    The data module does the same with its own state. Other loaders can't be reset: the number of batches
    whose gradients are lost is saved, for ``warn_lost_batches``.
    """
    batches = batches_since_step(trainer)
    if not batches:
        return
    if not isinstance(datamodule_of(trainer), PreferenceDataModule):
        checkpoint[_KEY] = batches
        return
    fit_loop = checkpoint["loops"]["fit_loop"]
    # As Lightning leaves them in on_train_batch_end of the batch that stepped: it then continues without
    # another validation, and counts that step itself.
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        done = counts["processed"] - batches
        counts |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def warn_lost_batches(checkpoint: dict[str, Any]) -> None:
    """Warn if the first step after resuming will lack batches."""
    if batches := checkpoint.get(_KEY):
        rank_zero_warn(
            f"The checkpoint was saved {batches} batches after an optimiser step, and their gradients are "
            "not in it: the first step is the mean over the other batches of its window. To lose none, train "
            "with a PreferenceDataModule, or resume from a checkpoint that was saved at an optimiser step."
        )

"""The checkpoint that a run is resumed from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from pl_prefopt.callbacks.stop_signals import StopSignals
from pl_prefopt.errors import ConfigError


class LastCheckpoint(Checkpoint):
    """Keeps the latest state of the run in ``last.ckpt``, and saves it before a run is stopped by a signal.

    It is written every ``minutes``, after each validation and at the end of each epoch, and only where
    resuming is exact, bit for bit: between two optimiser steps, never between the batches that one step
    accumulates, and not where a validation is due that Lightning would then skip. After SIGTERM, Ctrl-C or
    SLURM's warning signal, the run saves and stops at the next such point, or during a validation at once;
    the validation is then repeated.

    Ranks agree on saving once per optimiser step, by one small collective call.

    Args:
        dirpath: the folder; the command line sets it to the run's ``checkpoints``.
        minutes: the longest time between two checkpoints, and so the work that a crash can lose.
    """

    def __init__(self, dirpath: str | None = None, minutes: float = 10.0) -> None:
        if minutes < 0:
            raise ConfigError(f"expected `last.minutes` to be at least 0, got {minutes}; set another number")
        self.dirpath = dirpath
        self.minutes = minutes
        self.signals = StopSignals()
        self._saved: tuple[int, bool] | None = None  # the step, and whether amid a validation
        self._saved_at_time = 0.0
        self._validating = False
        self._stops = False  # as soon as the step is done

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the signal handlers, which stop the run with a message."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        self.signals.install(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the signal handlers."""
        self.signals.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the signal handlers."""
        self.signals.remove()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved, self._saved_at_time, self._stops = None, time.monotonic(), False
        self.signals.install(trainer)
        self.signals.may_wait = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals stop the run at once from here on."""
        self.signals.may_wait = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if ``minutes`` have passed, after the last step, or if a signal was received."""
        self._finish_step(trainer)
        if not _between_steps(trainer) or _more_is_due(trainer):
            return
        overdue = time.monotonic() - self._saved_at_time >= 60 * self.minutes
        at_end = trainer.global_step == trainer.max_steps
        if self._agreed(trainer, overdue or at_end or self.signals.received is not None):
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that a validation is running."""
        self._validating = True
        if not trainer.global_step:
            self.signals.may_wait = False  # nothing is trained that a checkpoint could keep
        self._listen(trainer, pl_module)

    def _listen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install(trainer)

    on_test_start = on_predict_start = _listen

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save and stop if a signal was received."""
        if not trainer.sanity_checking and self.signals.may_wait and _between_steps(trainer):
            self._stop_if_asked(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the validation is done, before any callback saves at its end."""
        self._validating = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the validated state; at an epoch's end only after the best checkpoint has been chosen."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if not trainer.global_step:
            self.signals.may_wait = True
        if trainer.fit_loop.total_batch_idx < 0:
            return  # before the first batch, which may be long before the first step
        self._finish_step(trainer)
        if not _between_steps(trainer):
            return
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Correct the progress counters of checkpoints within a validation or an epoch.

        Metric states of a validation aren't saved, so resuming within it would measure the remaining rows
        only. Lightning repeats it from the first batch if that was started and not processed.

        An epoch in which a callback such as ``Timer`` stopped training counts as completed for Lightning, and
        the resumed run would skip its remaining batches.
        """
        loops = checkpoint["loops"]["fit_loop"]
        if self._validating:
            progress = loops["epoch_loop.val_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["is_last_batch"] = False
        epochs = loops["epoch_progress"]
        ended = epochs["total"]["processed"] > epochs["total"]["completed"]
        if ended and not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            for counts in (epochs["total"], epochs["current"]):
                counts["processed"] -= 1

    def _save(self, trainer: Trainer) -> None:
        settings: Any = trainer
        state = (trainer.global_step, self._validating)
        if settings.fast_dev_run or state == self._saved:
            return
        for logger in trainer.loggers:
            logger.save()  # a resumed run doesn't log these values again
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved, self._saved_at_time = state, time.monotonic()

    def _finish_step(self, trainer: Trainer) -> None:
        """Defer stops by callbacks such as ``Timer`` to the end of the optimiser step.

        The batches of an unfinished step would be lost: their gradients aren't saved.
        """
        if _between_steps(trainer):
            trainer.should_stop |= self._stops
        else:
            self._stops |= trainer.should_stop
            trainer.should_stop = False

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not self._agreed(trainer, self.signals.received is not None):
            return
        self._save(trainer)
        step, of = trainer.global_step, trainer.estimated_stepping_batches
        self.signals.stop(f"step {step} of {of} is saved in {self._path}; resume with `--ckpt_path last`")

    @property
    def _path(self) -> Path:
        return Path(str(self.dirpath)) / "last.ckpt"

    def _agreed(self, trainer: Trainer, mine: bool) -> bool:
        """Whether ``mine`` is true on any rank."""
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))


def _between_steps(trainer: Trainer) -> bool:
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def _more_is_due(trainer: Trainer) -> bool:
    """Whether a validation or the epoch's end comes before the next batch; those hooks save."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    loop = trainer.fit_loop.epoch_loop
    return loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher)

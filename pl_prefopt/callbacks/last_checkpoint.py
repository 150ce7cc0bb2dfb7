"""The checkpoint that a run goes on from."""

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
    """Keeps the newest state of the run in ``last.ckpt``, and saves it before the run stops when asked to.

    It is written every so many minutes, after each validation and at the end of each epoch, and only where a
    run that goes on from it is the same, bit by bit, as one that never stopped: between two optimiser steps,
    never among the batches of one, and not where a validation is due that Lightning would then leave out.
    A SIGTERM, a Ctrl-C or SLURM's warning is obeyed at the next such place, or during a validation at once;
    the validation then begins anew.

    With several processes they agree on saving once an optimiser step, which is one small collective call.

    Args:
        dirpath: the folder; the command line sets it to the run's ``checkpoints``.
        minutes: how long training goes on without saving: the work that a crash can lose. The time since the
            last writing counts.
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
        """From here on a signal stops the run with a sentence."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        self.signals.install(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave signals alone again."""
        self.signals.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave signals alone again."""
        self.signals.remove()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the minutes."""
        self._saved, self._saved_at_time, self._stops = None, time.monotonic(), False
        self.signals.install(trainer)
        self.signals.may_wait = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody looks for signals any more."""
        self.signals.may_wait = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to, the run's last step, or the run was asked to stop."""
        self._finish_step(trainer)
        if not _between_steps(trainer) or _more_is_due(trainer):
            return
        overdue = time.monotonic() - self._saved_at_time >= 60 * self.minutes
        at_end = trainer.global_step == trainer.max_steps
        if self._agreed(trainer, overdue or at_end or self.signals.received is not None):
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation isn't done."""
        self._validating = True
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
        """Save and stop if asked to."""
        if not trainer.sanity_checking and self.signals.may_wait and _between_steps(trainer):
            self._stop_if_asked(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation is done, before anybody saves at its end."""
        self._validating = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was validated; at an epoch's end only after the best checkpoint has been chosen there."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._finish_step(trainer)
        if not _between_steps(trainer):
            return
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch's end."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run that resumes from the middle of a validation or an epoch do the rest of it.

        The counts of a validation are in no checkpoint, so to resume in its middle would measure the rest of
        the rows only. Lightning repeats it from the first batch if that was started and not processed.

        An epoch in which a callback such as ``Timer`` stopped training ends for Lightning like any other, and
        the resumed run would leave out its other batches.
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
            logger.save()  # what was measured until here would not be measured again
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved, self._saved_at_time = state, time.monotonic()

    def _finish_step(self, trainer: Trainer) -> None:
        """Let a callback that stops training, such as ``Timer``, do so only between two steps.

        The batches of a step that is not finished would be lost: their gradients are in no checkpoint.
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
        self.signals.stop(f"step {step} of {of} is saved in {self._path}; go on with `--ckpt_path last`")

    @property
    def _path(self) -> Path:
        return Path(str(self.dirpath)) / "last.ckpt"

    def _agreed(self, trainer: Trainer, mine: bool) -> bool:
        """Whether any process wants to."""
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))


def _between_steps(trainer: Trainer) -> bool:
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def _more_is_due(trainer: Trainer) -> bool:
    """Whether a validation or the epoch's end comes before the next batch; those save by themselves."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    loop = trainer.fit_loop.epoch_loop
    return loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher)

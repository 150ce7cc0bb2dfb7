"""The step at which the evaluation of a checkpoint is logged."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn


class LoggedStep:
    """Logs the evaluation of a checkpoint at the checkpoint's step.

    Lightning logs at the number of steps that this process has trained: 0 in ``validate`` and ``test``.
    """

    def __init__(self) -> None:
        self._trained: tuple[Any, int] | None = None  # the loop, and its step

    def begin(self, trainer: Any, restored: int | None) -> None:
        """Set the step at the start of an evaluation.

        Args:
            trainer: the trainer.
            restored: the step of the checkpoint that was loaded last.
        """
        if trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path is not None and restored is not None:
            loop = trainer.fit_loop.epoch_loop
            self._trained, loop._batches_that_stepped = (loop, loop._batches_that_stepped), restored

    def end(self) -> None:
        """Restore the step, since the same trainer may go on training.

        Also at the next setup: an evaluation that raised has no end.
        """
        if self._trained is not None:
            loop, loop_step = self._trained
            loop._batches_that_stepped = loop_step
            self._trained = None

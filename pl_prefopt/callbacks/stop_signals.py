"""Signals that ask a run to stop: recorded where stopping has to wait, handled at once elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any, ClassVar

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

from pl_prefopt.errors import StoppedError


class StopSignals:
    """SIGTERM, SIGINT (Ctrl-C) and, under SLURM, the signal that announces the end of the allotted time.

    They replace Lightning's handlers: its SLURM handler saves a checkpoint in the middle of a step, and its
    SIGTERM handler starts a collective call there. A second Ctrl-C stops at once.

    Attributes:
        received: the first signal recorded, or ``None``.
        may_wait: whether ``received`` is checked regularly; if not, a signal raises at once.
    """

    names: ClassVar[dict[int, str]] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

    def __init__(self) -> None:
        self.received: int | None = None
        self.may_wait = False
        self._trainer: Trainer | None = None
        self._requeue: int | None = None
        self._earlier: dict[int, Any] = {}

    def install(self, trainer: Trainer) -> None:
        """Handle the signals from now on.

        May be called again, since Lightning installs its own handlers just before a loop runs. Does nothing
        outside the main thread, where Python can't install handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._trainer = trainer
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = environment.requeue_signal
        for number in {signal.SIGTERM, signal.SIGINT, self._requeue or signal.SIGTERM}:
            if signal.getsignal(number) != signal.SIG_IGN:  # shells ignore signals of background jobs
                self._earlier.setdefault(number, signal.signal(number, self._handle))

    def remove(self) -> None:
        """Restore the earlier handlers."""
        self._trainer, self.received, self.may_wait = None, None, False
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._earlier.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def stop(self, saved: str) -> None:
        """Requeue the job if SLURM's signal asked for it, and raise.

        Args:
            saved: the part of the message that says where the run was saved.

        Raises:
            StoppedError: always.
        """
        requeued = ""
        first = self._trainer is not None and self._trainer.is_global_zero
        if first and self.received is not None and self.received == self._requeue:
            requeued = _requeue()
        name = self.names.get(self.received or 0, "the end of the allotted time")
        raise StoppedError(f"stopped by {name}: {saved}{requeued}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._trainer is None:  # after a failed run Lightning has put this handler back
            signal.signal(number, self._earlier[number] or signal.SIG_DFL)
            signal.raise_signal(number)
            return
        launcher = self._trainer.strategy.launcher
        if launcher is not None and self.received is None and number == signal.SIGTERM:
            launcher.kill(number)  # the signal reached this process only, not the other ranks
        again, self.received = self.received is not None, self.received or number
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if not self.may_wait:
            self.stop("it was not training; what was saved before is whole, and the same command uses it")


def _requeue() -> str:
    """Ask SLURM to run the job's script again."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        return f"; SLURM could not be asked to run it again ({error})"
    reason = done.stderr.strip() or f"scontrol ended with {done.returncode}"
    return "; SLURM runs it again" if done.returncode == 0 else f"; SLURM refused to run it again ({reason})"

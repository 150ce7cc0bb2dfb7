"""A start that fails leaves nothing in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pl_prefopt.cli.run_folder import METRICS, is_first_process

_WRITTEN = (".lock", METRICS, "hparams.yaml", "events.out.tfevents.*")
"""What a command writes before its first step; anything else in the folder is someone else's."""


class Start:
    """What is in a folder before a command writes to it.

    Args:
        folder: the run's folder, or that of an evaluation in it; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = set(folder.iterdir()) if folder.is_dir() else set()
        self._missing = [one for one in (folder, *folder.parents) if not one.exists()]

    def undo_unless(self, begun: Callable[[], bool]) -> None:
        """Take out again what was added, on rank 0, unless the command got as far as its first step."""
        if begun() or not is_first_process() or not self._folder.is_dir():
            return
        for pattern in _WRITTEN:
            for file in {*self._folder.glob(pattern)} - self._before:
                file.unlink()
        self._restore_metrics()
        for folder in self._missing:
            with suppress(OSError):  # someone else has put something there
                folder.rmdir()

    def _restore_metrics(self) -> None:
        """Give the earlier metrics their name back, which the new ones were to take."""
        if self._folder / METRICS not in self._before:
            return
        for renamed in {*self._folder.glob("metrics.*.csv")} - self._before:
            renamed.replace(self._folder / METRICS)

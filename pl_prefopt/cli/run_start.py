"""Cleaning up the run folder after a start that failed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pl_prefopt.cli.run_folder import METRICS, is_first_process
from pl_prefopt.evaluations import FACTS

_WRITTEN = (".lock", METRICS, FACTS, "hparams.yaml", "events.out.tfevents.*")
"""What a command writes before its first step; other files in the folder are not touched."""


class Start:
    """A record of the contents of a folder before a command writes to it.

    Args:
        folder: the run folder, or the folder of an evaluation in it; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = set(folder.iterdir()) if folder.is_dir() else set()
        self._missing = [one for one in (folder, *folder.parents) if not one.exists()]

    def undo_unless(self, begun: Callable[[], bool]) -> None:
        """Remove what was added, on rank 0, unless the command reached its first step."""
        if begun() or not is_first_process() or not self._folder.is_dir():
            return
        for pattern in _WRITTEN:
            for file in {*self._folder.glob(pattern)} - self._before:
                file.unlink()
        self._restore_metrics()
        for folder in self._missing:
            with suppress(OSError):  # something else was written there
                folder.rmdir()

    def _restore_metrics(self) -> None:
        """Rename the earlier metrics back to their original name."""
        if self._folder / METRICS not in self._before:
            return
        for renamed in {*self._folder.glob("metrics.*.csv")} - self._before:
            renamed.replace(self._folder / METRICS)

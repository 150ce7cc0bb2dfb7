"""What has been done: one readable file, replaced atomically after each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError, DataError, first_line
from pl_prefopt.files import atomic_write
from pl_prefopt.rounds.plan import Stage

FILE = "rounds.json"
_MAY_CHANGE = ("rounds", "evaluate")
"""Settings of which a change leaves what is done as it is."""


class State:
    """The finished stages of rounds, and the settings that they were run with.

    Args:
        out: the folder of the rounds.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self.settings: Mapping[str, Any] = {}
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                held = json.loads(self.path.read_text(encoding="utf-8"))
                self.settings, self.done = held["settings"], held["done"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"expected the state of rounds in {self.path}, got: {first_line(error)}; restore the "
                    "file, or set `out` to another folder."
                ) from error

    def accept(self, settings: Mapping[str, Any], *, changes: bool) -> None:
        """Check that the settings are those of the finished stages, and keep them.

        Args:
            settings: the settings as text, numbers, lists and mappings.
            changes: whether they may differ, since stages are run again.

        Raises:
            ConfigError: if they differ.
        """
        for name in settings.keys() - set(_MAY_CHANGE) if self.done and not changes else ():
            if settings[name] != self.settings.get(name):
                raise ConfigError(
                    f"{self.path.parent} has rounds with another `{name}` ({self.settings.get(name)}, and "
                    f"now {settings[name]}): set `out` to another folder, or add `--rerun STAGE` to run a "
                    "stage and what follows it again."
                )
        self.settings = settings
        self._write()

    def finish(self, stage: Stage, *, seconds: float) -> None:
        """Note that a stage is done."""
        self.done[str(stage)] = {"seconds": round(seconds, 1), "exit_status": 0}
        self._write()

    def forget_from(self, first: Stage) -> None:
        """Note that a stage and all after it have to be run again."""
        self.done = {text: told for text, told in self.done.items() if Stage.of(text).order < first.order}
        self._write()

    def _write(self) -> None:
        with atomic_write(self.path) as draft:
            content = {"settings": self.settings, "done": self.done}
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

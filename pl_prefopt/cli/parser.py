"""The argument parser, with errors of a line or two."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from pl_prefopt.errors import ConfigError, nearest

_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([\w.\[\]]+)")


class Parser(LightningArgumentParser):
    """Says what is wrong, without the usage of two hundred settings."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ``ConfigError``; for an unknown setting it names the nearest one."""
        unknown = _UNKNOWN.search(message)
        hint = nearest(unknown.group(1), self._settings()) if unknown else ""
        raise ConfigError(_shortened(message) + hint) from ex

    def _settings(self) -> list[str]:
        parsers: Iterable[LightningArgumentParser] = [self]
        if self._subcommands_action is not None:
            parsers = self._subcommands_action.choices.values()
        return sorted({action.dest for parser in parsers for action in parser._actions})


def _shortened(message: str) -> str:
    """Leave out the dumps of whole configurations that a nested error repeats."""
    lines = [line for line in message.splitlines() if not line.lstrip().startswith("Given value")]
    return "\n".join(line for line in lines if "<class 'NoneType'>" not in line).rstrip()

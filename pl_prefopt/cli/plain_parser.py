"""The argument parser of commands without a configuration, such as ``export`` and ``report``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from pl_prefopt.cli.parser_messages import one_sentence
from pl_prefopt.errors import ConfigError

_Made = TypeVar("_Made")


class PlainParser(ArgumentParser):
    """Raises a ``ConfigError`` where jsonargparse would print the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise it."""
        raise ConfigError(f"{one_sentence(message)[0]} Try `{self.prog} --help`.") from ex


def made_from(kind: type[_Made], command: str, given: Mapping[str, Any]) -> _Made:
    """Return the object that a command's YAML file describes.

    Args:
        kind: its class.
        command: such as ``sweep``, for messages.
        given: the class's arguments.

    Raises:
        ConfigError: if they are wrong.
    """
    parser = PlainParser(prog=f"prefopt {command}", exit_on_error=False)
    parser.add_class_arguments(kind, command, sub_configs=False)
    # A copy, since the parser changes what it is given.
    parsed = parser.parse_object({command: copy.deepcopy(dict(given))})
    made: _Made = parser.instantiate_classes(parsed)[command]
    return made

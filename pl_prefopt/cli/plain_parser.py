"""The argument parser of commands without a configuration, such as ``export`` and ``report``."""

from __future__ import annotations

from typing import NoReturn

from jsonargparse import ArgumentParser

from pl_prefopt.cli.parser_messages import one_sentence
from pl_prefopt.errors import ConfigError


class PlainParser(ArgumentParser):
    """Raises a ``ConfigError`` where jsonargparse would print the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise it."""
        raise ConfigError(f"{one_sentence(message)[0]} Try `{self.prog} --help`.") from ex

"""The argument parser, with short error messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from pl_prefopt.cli.named_functions import without_open_callables
from pl_prefopt.cli.parser_messages import one_sentence
from pl_prefopt.cli.section_help import SectionHelp
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.saved_settings import is_saved, read_saved

# A default may be a subclass of str, such as the `interval` of Lightning's Timer.
yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)

# A mapping with a class_path is then a mapping where the annotation names no kind of class, such as `Any`.
set_parsing_settings(instantiate_subclass_spec_in_any=False)

_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([\w.\[\]]+)")


class RefusedError(ConfigError):
    """Raised for a configuration that the parser rejected, with the setting's ``key`` if known."""

    def __init__(self, message: str, key: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.key = key


class Parser(LightningArgumentParser):
    """A parser whose errors don't print the usage of all settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, add_help=False)
        self.add_argument("-h", "--help", action=SectionHelp)

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, **options: Any) -> Any:
        """Add the arguments of a class; files named by data settings are rows, never nested settings."""
        if theclass is PreferenceDataModule:
            options["sub_configs"] = False
        added = super().add_class_arguments(theclass, nested_key, **options)
        without_open_callables(self)
        return added

    def add_function_arguments(self, function: Callable[..., Any], *_: Any, **__: Any) -> NoReturn:
        """Reject a function named by a ``class_path``, which would be called with arbitrary arguments.

        Raises:
            ConfigError: always.
        """
        name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        raise ConfigError(f"expected a `class_path` to name a class, got the function {name}.")

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a file; paths in a run's config.yaml are resolved to work from the working directory."""
        if not is_saved(Path(path)):
            return super().parse_path(path, *args, **kwargs)
        return self.parse_string(yaml.safe_dump(read_saved(Path(path))), path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ``RefusedError``; for an unknown setting, with a suggestion."""
        unknown = _UNKNOWN.search(message)
        if unknown is None:
            raise RefusedError(*one_sentence(message)) from ex
        name = unknown.group(1)
        hint = suggest(name, self._settings()) or "."
        raise RefusedError(f"there is no setting '{name}'{hint}", key=tuple(name.split("."))) from ex

    def _settings(self) -> list[str]:
        parsers: Iterable[LightningArgumentParser] = [self]
        if self._subcommands_action is not None:
            parsers = self._subcommands_action.choices.values()
        return sorted({action.dest for parser in parsers for action in parser._actions})

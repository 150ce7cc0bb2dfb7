"""Modules built from a run's ``config.yaml``, to load a checkpoint without a trainer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser

from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.saved_settings import FILE_NAME, read_saved

_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def arguments_of(module: type, checkpoint: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the module that made a checkpoint, from its run's ``config.yaml``.

    Args:
        module: the module's class.
        checkpoint: the checkpoint of a run, in its ``checkpoints`` folder.
        given: arguments that replace those of the run.

    Raises:
        ConfigError: if there is no such file, or it can't be read.
    """
    config = checkpoint.resolve().parent.parent / FILE_NAME
    if not config.is_file():
        if {"policy", "objective"} <= given.keys():
            return dict(given)
        raise ConfigError(
            f"There is no {FILE_NAME} of a run next to the folder of {checkpoint}: pass the module's "
            "arguments, load_from_checkpoint(path, policy=PolicySpec(...), objective=...)."
        )
    try:
        saved = read_saved(config)["model"]["init_args"]
        types = _argument_types(module)
        wanted = {name: saved[name] for name in types if name in saved and name not in given}
        parser = ArgumentParser(exit_on_error=False)
        for name in wanted:
            parser.add_argument(f"--{name}", type=types[name])
        built = parser.instantiate_classes(parser.parse_object(wanted))
    except Exception as error:  # a class of the user's own can raise anything
        raise ConfigError(f"{config} can't be read: {first_line(error)}.") from error
    return {name: built[name] for name in wanted} | dict(given)


def _argument_types(module: type) -> dict[str, Any]:
    """Return the types of a class's arguments, with those that it passes on as ``options``."""
    found: dict[str, Any] = {}
    for one in reversed(module.__mro__):
        constructor: Any = vars(one).get("__init__")
        if constructor is not None:
            hints, parameters = get_type_hints(constructor), inspect.signature(constructor).parameters
            found |= {
                name: hints[name]
                for name, parameter in parameters.items()
                if name in hints and parameter.kind not in _SEVERAL
            }
    return found

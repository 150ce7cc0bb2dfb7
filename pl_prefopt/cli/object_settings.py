"""The settings of objects, as a configuration would write them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives.base import constructor_arguments

_PLAIN = (bool, int, float, str, type(None))


def settings_of(value: Any) -> Any:
    """Return what a configuration writes for ``value``: a class path and its arguments for an object.

    The arguments are read from attributes of the same names. An object that is built anew from them must
    have the same settings, so that a constructor that changes its arguments is refused.

    Raises:
        ConfigError: if an argument can't be read, or is no plain value or object.

    Examples:
        >>> from pl_prefopt.objectives import SimPO
        >>> settings_of(SimPO(beta=2.5))["class_path"]
        'pl_prefopt.objectives.SimPO'
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | nn.ModuleList):
        return [settings_of(item) for item in value]
    if isinstance(value, Mapping | nn.ModuleDict):
        return {str(key): settings_of(item) for key, item in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value):
        return _import_path(value)
    arguments = _arguments(value)
    settings = {name: settings_of(item) for name, item in arguments.items()}
    again = _arguments(type(value)(**arguments))
    if {name: settings_of(item) for name, item in again.items()} != settings:
        raise _unreadable(value, "its constructor changes its arguments")
    return {"class_path": _import_path(type(value)), **({"init_args": settings} if settings else {})}


def changed_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, by name."""
    return {
        each.name: settings_of(getattr(value, each.name))
        for each in dataclasses.fields(value)
        if getattr(value, each.name) != each.default
    }


def _arguments(value: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(value)).parameters
    found = constructor_arguments(value)
    missing = [name for name in parameters if name not in found]
    if missing:
        raise _unreadable(value, f"it keeps its argument '{missing[0]}' in no attribute of that name")
    return found


def _unreadable(value: Any, reason: str) -> ConfigError:
    name = type(value).__name__
    return ConfigError(
        f"The settings of this {name} can't be written to the run's config.yaml: {reason}. Pass "
        f"{{'class_path': '{_import_path(type(value))}', 'init_args': {{...}}}} instead."
    )


def _import_path(kind: Any) -> str:
    """Return the shortest path of packages below the first that exports ``kind``."""
    parts, name = kind.__module__.split("."), kind.__qualname__
    for depth in range(2, len(parts)):
        package = ".".join(parts[:depth])
        if getattr(importlib.import_module(package), name, None) is kind:
            return f"{package}.{name}"
    return f"{kind.__module__}.{name}"

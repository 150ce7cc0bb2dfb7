"""Functions in a configuration: given by import path, never called with arguments from it.

For an annotation such as ``Callable[[Any], int]``, jsonargparse would construct any class with callable
instances, with any arguments. Here such a setting accepts only the import path of a function. Where the
annotation names the class that is returned, as in ``Callable[[Iterable], Optimizer]``, jsonargparse itself
accepts only subclasses of it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import types
import typing
from collections import abc
from typing import Any

from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser


class NamedFunction:
    """The annotation of a setting that accepts a function by its import path."""


def without_open_callables(parser: LightningArgumentParser) -> None:
    """Restrict the settings of ``parser`` that accept arbitrary callables to ``NamedFunction``."""
    actions: list[Any] = parser._actions
    for action in actions:
        if hasattr(action, "_typehint"):
            action._typehint = _restricted(action._typehint)


def _restricted(hint: Any) -> Any:
    """Return ``hint`` with ``NamedFunction`` for each callable that doesn't name the class it returns."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if (origin or hint) in (abc.Callable, typing.Callable):
        return hint if parts and _is_own_class(parts[-1]) else NamedFunction
    restricted = tuple(_restricted(part) for part in parts)
    if restricted == parts:
        return hint
    if origin is types.UnionType:
        return functools.reduce(operator.or_, restricted)
    return origin[restricted]


def _is_own_class(hint: Any) -> bool:
    return inspect.isclass(hint) and hint.__module__ != "builtins"


def _find(path: Any) -> Any:
    if not isinstance(path, str):
        raise ValueError("Expected the import path of a function")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Expected the import path of a function, got {path!r}: {error}") from error
    if not inspect.isroutine(found):
        raise ValueError(f"Expected the import path of a function, but {path} is not a function")
    return found


def _path_of(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


register_type(NamedFunction, _path_of, _find, type_check=lambda value, _: inspect.isroutine(value))

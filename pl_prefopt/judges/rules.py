"""Rules in Python as judges."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pl_prefopt.errors import ConfigError, RunError, first_line
from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Verdict

PAGE = "judges.md"


class Rule(Judge):
    """Grades responses by a function in Python.

    The function takes a row and returns one score per response; ``None``, or a number that isn't finite, is
    an invalid answer. It is part of the fingerprint by its name and the source of its module.

    Args:
        function: the import path of the function, such as ``mylab.rules.shorter``, or the function.
        batch_size: rows per batch.

    Raises:
        ConfigError: if there is no such function.

    Examples:
        >>> from pl_prefopt.rows import Message
        >>> row = JudgedRow(
        ...     prompt=(Message("user", "Is it late?"),),
        ...     responses=((Message("assistant", "Yes, it is."),), (Message("assistant", "No."),)),
        ... )
        >>> Rule("pl_prefopt.judges.rules.brevity").judge([row])[0].scores
        (-11.0, -3.0)
    """

    gives: ClassVar[Gives] = "scores"

    def __init__(self, function: str, batch_size: int = 256) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected `batch_size` to be at least 1, got {batch_size}.")
        self._function: Callable[[JudgedRow], Sequence[float | None]] = (
            function if callable(function) else _find(function)
        )
        self.batch_size = batch_size

    @property
    def name(self) -> str:
        """The function's name."""
        return f"Rule({self._path})"

    @property
    def _path(self) -> str:
        return f"{self._function.__module__}.{self._function.__qualname__}"

    def fingerprint(self) -> str:
        """Return a hash of the function's path and the source of its module."""
        module = inspect.getmodule(self._function)
        try:
            source = inspect.getsource(module) if module is not None else ""
        except (OSError, TypeError):
            source = ""  # a module without source, such as an interactive session
        return hashlib.blake2b(f"{self._path}\0{source}".encode(), digest_size=8).hexdigest()

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        return [self._verdict(row) for row in batch]

    def _verdict(self, row: JudgedRow) -> Verdict:
        start = time.monotonic()
        where = row.origin or "a row"
        try:
            given = list(self._function(row))
        except Exception as error:  # a rule can raise anything
            kind = type(error).__name__
            raise RunError(f"{self.name} failed at {where} ({kind}: {first_line(error)}).") from error
        if len(given) != len(row.responses):
            raise RunError(
                f"expected {self.name} to return one score for each of the {len(row.responses)} responses of "
                f"{where}, got {len(given)}."
            )
        scores = tuple(_number(one) for one in given)
        wrong = [repr(one) for one, score in zip(given, scores, strict=True) if score is None]
        return Verdict(
            scores=scores,
            problems=tuple(f"the rule returned {one[:60]}" for one in wrong),
            cost=Cost(seconds=time.monotonic() - start),
        )


def brevity(row: JudgedRow) -> list[float]:
    """Return minus the number of characters of each response: the baseline that knows lengths only."""
    return [-float(sum(len(turn.content) for turn in response)) for response in row.responses]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"expected `function` to be the import path of a function, such as mylab.rules.shorter, got "
            f"'{path}' ({first_line(error)})."
        ) from error
    if not inspect.isroutine(found):
        raise ConfigError(f"expected `function` to be the import path of a function, got {path}.")
    return found

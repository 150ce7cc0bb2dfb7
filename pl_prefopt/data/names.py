"""Numbers for the names in a column, such as those of annotators: a table that a run keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from pl_prefopt.errors import DataError
from pl_prefopt.rows import Scalar, Value

UNKNOWN = -1
"""The number of a name that is not in the table, and of a missing one."""


@dataclass(frozen=True)
class Names:
    """The distinct names of a column. The number of a name is its position.

    Whole numbers are names too: 7 is "7".

    Args:
        names: the names by their numbers.

    Examples:
        >>> names = Names.of(["bob", "ann", None, "bob"])
        >>> names.names, names.number("bob"), names.number("eve")
        (('ann', 'bob'), 1, -1)
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[Value], column: str = "annotator") -> Self:
        """Return the table of the names in a column, in sorted order, which doesn't depend on that of rows.

        Raises:
            DataError: if a value is no name.
        """
        found = {_name(one, column) for value in values for one in _scalars(value) if one is not None}
        return cls(tuple(sorted(found)))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def number(self, name: Scalar) -> int:
        """Return a name's number, or −1 if the table doesn't have it."""
        return UNKNOWN if name is None else self._numbers.get(str(name), UNKNOWN)

    def collate(self, values: Sequence[Value], responses: int | None = None) -> Tensor:
        """Return the numbers of B values: int64 [B], or [B, R] padded with −1 if each response has a name."""
        if responses is None:
            return torch.tensor([self.number(value) for value in _single(values)], dtype=torch.int64)
        held = torch.full((len(values), responses), UNKNOWN, dtype=torch.int64)
        for b, value in enumerate(values):
            names = value if isinstance(value, tuple) else ()
            held[b, : len(names)] = torch.tensor([self.number(name) for name in names], dtype=torch.int64)
        return held


def _scalars(value: Value) -> tuple[Scalar, ...]:
    return value if isinstance(value, tuple) else (value,)


def _single(values: Sequence[Value]) -> list[Scalar]:
    return [None if isinstance(value, tuple) else value for value in values]


def _name(value: Scalar, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"expected names in the column '{column}', texts or whole numbers, got {value!r}: correct the "
            "data, or name another column."
        )
    return str(value)

"""Which token trees share a row of a model's input: the less padding, the less work for nothing."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

EVEN_WIDTH = 2048
"""The width of a row at which its attention is taken to cost what its other layers do."""


@dataclass(frozen=True)
class Packing:
    """Where each tree stands.

    Attributes:
        row: the row of each tree.
        start: the column of each tree's first token behind what all trees have in common.
        rows: the number of rows.
        width: their common width, in tokens.
    """

    row: tuple[int, ...]
    start: tuple[int, ...]
    rows: int
    width: int

    @property
    def cost(self) -> int:
        """The rows' work, linear layers and attention, on no particular scale."""
        return self.rows * self.width * (EVEN_WIDTH + self.width)


def pack(lengths: Sequence[int], common: int) -> Packing:
    """Put trees side by side in as many rows as cost least.

    Args:
        lengths: each tree's number of tokens.
        common: how many first tokens all trees have in common; each row holds them once, in front.

    >>> pack([10, 4, 5], common=2)
    Packing(row=(0, 0, 0), start=(2, 13, 10), rows=1, width=15)
    """
    return min((_balanced(lengths, common, rows) for rows in range(1, len(lengths) + 1)), key=_by_cost)


def _by_cost(packing: Packing) -> int:
    return packing.cost


def _balanced(lengths: Sequence[int], common: int, rows: int) -> Packing:
    """Give each tree, the longest first, to the row that is the shortest so far."""
    free = [(common, row) for row in range(rows)]
    row, start = [0] * len(lengths), [0] * len(lengths)
    for tree in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        start[tree], row[tree] = heapq.heappop(free)
        heapq.heappush(free, (start[tree] + lengths[tree] - common, row[tree]))
    return Packing(tuple(row), tuple(start), rows, max(end for end, _ in free))

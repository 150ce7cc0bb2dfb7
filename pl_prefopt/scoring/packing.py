"""Packing of token trees into rows of a model's input with little padding."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

EVEN_WIDTH = 2048
"""The row width at which attention is assumed to cost as much as the other layers."""


@dataclass(frozen=True)
class Packing:
    """The place of each tree: its head, which is its first tokens, and the rest after it.

    Attributes:
        row: the row of each tree.
        head: the number of tokens in each tree's head.
        head_start: the column of each tree's first token.
        start: the column of each tree's first token after its head.
        rows: the number of rows.
        width: the width that all rows have, in tokens.
        read: the number of first columns of each row for heads that are read from a prefix cache.
    """

    row: tuple[int, ...]
    head: tuple[int, ...]
    head_start: tuple[int, ...]
    start: tuple[int, ...]
    rows: int
    width: int
    read: int = 0

    @property
    def cost(self) -> int:
        """The relative cost of linear layers and attention."""
        return self.rows * self.width * (EVEN_WIDTH + self.width)


def pack(lengths: Sequence[int], shared_prefix: int, *, most_rows: int | None = None) -> Packing:
    """Pack trees into the number of rows with the lowest cost.

    Args:
        lengths: each tree's number of tokens.
        shared_prefix: the number of first tokens that all trees share; each row has them once, at its start.
        most_rows: the largest number of rows; as many as there are trees by default.

    >>> packing = pack([10, 4, 5], shared_prefix=2)
    >>> packing.row, packing.start, packing.width
    ((0, 0, 0), (2, 13, 10), 15)
    """
    counts = range(1, (most_rows or len(lengths)) + 1)
    return min((_balanced(lengths, shared_prefix, rows) for rows in counts), key=_by_cost)


def pack_behind(lengths: Sequence[int], heads: Sequence[int], *, most_rows: int | None = None) -> Packing:
    """Pack trees after their heads, which are read from a prefix cache.

    Args:
        lengths: each tree's number of tokens.
        heads: the number of first tokens of each tree that are read.
        most_rows: the largest number of rows; as many as there are trees by default.

    >>> packing = pack_behind([10, 4, 5], heads=[6, 3, 2])
    >>> packing.row, packing.head_start, packing.start, packing.width
    ((0, 1, 1), (0, 0, 3), (6, 9, 6), 10)
    """
    own = [length - head for length, head in zip(lengths, heads, strict=True)]
    rests = pack(own, shared_prefix=0, most_rows=most_rows)
    ends: Counter[int] = Counter()
    head_start = []
    for row, head in zip(rests.row, heads, strict=True):
        head_start.append(ends[row])
        ends[row] += head
    read = max(ends.values())
    return replace(
        rests,
        head=tuple(heads),
        head_start=tuple(head_start),
        start=tuple(read + start for start in rests.start),
        width=read + rests.width,
        read=read,
    )


def _by_cost(packing: Packing) -> int:
    return packing.cost


def _balanced(lengths: Sequence[int], shared_prefix: int, rows: int) -> Packing:
    """Assign each tree, the longest first, to the shortest row so far."""
    free = [(shared_prefix, row) for row in range(rows)]
    row, start = [0] * len(lengths), [0] * len(lengths)
    for tree in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        start[tree], row[tree] = heapq.heappop(free)
        heapq.heappush(free, (start[tree] + lengths[tree] - shared_prefix, row[tree]))
    heads, head_starts = (shared_prefix,) * len(lengths), (0,) * len(lengths)
    return Packing(tuple(row), heads, head_starts, tuple(start), rows, max(end for end, _ in free))

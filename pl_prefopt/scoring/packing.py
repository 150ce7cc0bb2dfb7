"""Which token trees share a row of a model's input: the less padding, the less work for nothing."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

EVEN_WIDTH = 2048
"""The width of a row at which its attention is taken to cost what its other layers do."""


@dataclass(frozen=True)
class Packing:
    """Where each tree stands: its head, some first tokens, and behind it the rest.

    Attributes:
        row: the row of each tree.
        head: how many tokens each tree's head has.
        head_start: the column of each tree's first token.
        start: the column of each tree's first token behind its head.
        rows: the number of rows.
        width: the width that all rows have, in tokens.
        read: how many first columns of all rows hold heads that are not computed.
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
        """The rows' work, linear layers and attention, on no particular scale."""
        return self.rows * self.width * (EVEN_WIDTH + self.width)


def pack(lengths: Sequence[int], shared_prefix: int) -> Packing:
    """Put trees side by side in as many rows as cost least.

    Args:
        lengths: each tree's number of tokens.
        shared_prefix: the number of first tokens that all trees share; each row has them once, at its start.

    >>> packing = pack([10, 4, 5], shared_prefix=2)
    >>> packing.row, packing.start, packing.width
    ((0, 0, 0), (2, 13, 10), 15)
    """
    return min((_balanced(lengths, shared_prefix, rows) for rows in range(1, len(lengths) + 1)), key=_by_cost)


def pack_behind(lengths: Sequence[int], heads: Sequence[int]) -> Packing:
    """Put trees side by side behind their heads, which are read and not computed.

    Args:
        lengths: each tree's number of tokens.
        heads: how many of them are read.

    >>> packing = pack_behind([10, 4, 5], heads=[6, 3, 2])
    >>> packing.row, packing.head_start, packing.start, packing.width
    ((0, 1, 1), (0, 0, 3), (6, 9, 6), 10)
    """
    rests = pack([length - head for length, head in zip(lengths, heads, strict=True)], shared_prefix=0)
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
    """Give each tree, the longest first, to the row that is the shortest so far."""
    free = [(shared_prefix, row) for row in range(rows)]
    row, start = [0] * len(lengths), [0] * len(lengths)
    for tree in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        start[tree], row[tree] = heapq.heappop(free)
        heapq.heappush(free, (start[tree] + lengths[tree] - shared_prefix, row[tree]))
    heads, head_starts = (shared_prefix,) * len(lengths), (0,) * len(lengths)
    return Packing(tuple(row), heads, head_starts, tuple(start), rows, max(end for end, _ in free))

"""The segments of trees in one row: a branch each, with the keys along its path from the root."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pl_prefopt.attention import Segments
from pl_prefopt.scoring.inputs import copied_to
from pl_prefopt.scoring.packing import Packing


class _Segment(NamedTuple):
    """A branch's number of tokens that no branch before it has, and the runs of columns along its path."""

    queries: int
    path: tuple[tuple[int, int], ...]


def segments_of(
    prompts: Sequence[int], responses: Sequence[Sequence[int]], packing: Packing, device: torch.device
) -> Segments:
    """Return the segments of trees that are packed into one row, without synchronising with a GPU.

    A prompt's first response is in one segment with it, so that only further responses read it once more.

    Args:
        prompts: each tree's number of prompt tokens.
        responses: each tree's numbers of tokens per response, 0 where one is absent.
        packing: the place of each tree.
        device: where the row is.
    """
    segments = [segment for segment in _branches(prompts, responses, packing) if segment.queries]
    sizes = [(segment.queries, sum(length for _, length in segment.path)) for segment in segments]
    ends = [torch.tensor([0, *of_all]).cumsum(0) for of_all in zip(*sizes, strict=True)]
    count = sum(keys for _, keys in sizes)
    runs = [run for segment in segments for run in segment.path]
    as_they_are = packing.read == 0 and count == packing.width
    keys = [] if as_they_are else [_columns(runs, count)]
    moved, one = copied_to(torch.cat([*ends, *keys]).int(), device), len(sizes) + 1
    return Segments(
        query_ends=moved[:one],
        key_ends=moved[one : 2 * one],
        keys=moved[2 * one :] if keys else None,
        sizes=tuple(sizes),
        longest_query=max(queries for queries, _ in sizes),
        longest_key=max(keys for _, keys in sizes),
        width=packing.width,
        read=packing.read,
    )


def _branches(
    prompts: Sequence[int], responses: Sequence[Sequence[int]], packing: Packing
) -> Iterator[_Segment]:
    """Yield the segment of each branch, in the order of the row; some may be without queries."""
    first = 0 if packing.read else packing.head[0]  # the shared prefix is computed with the first branch
    for tree in sorted(range(len(prompts)), key=packing.start.__getitem__):
        head, start = packing.head[tree], packing.start[tree]
        own = prompts[tree] - head
        prompt = ((packing.head_start[tree], head), (start, own))
        new, column = first + own, start + own
        for size in [size for size in responses[tree] if size] or [0]:
            yield _Segment(new + size, (*prompt, (column, size)))
            new, column = 0, column + size
        first = 0


def _columns(runs: Sequence[tuple[int, int]], count: int) -> Tensor:
    """Return the columns of all runs one after the other, int64 [count].

    >>> _columns([(4, 2), (0, 3)], 5).tolist()
    [4, 5, 0, 1, 2]
    """
    start, length = torch.tensor(runs).unbind(dim=1)
    offset = start - (length.cumsum(0) - length)
    return offset.repeat_interleave(length, output_size=count) + torch.arange(count)

"""Numbers of all ranks, for objectives that look beyond their own rank's batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(values: Tensor) -> tuple[Tensor, int]:
    """Return the ranks' values one after the other, without gradient, and where this rank's begin.

    Args:
        values: [N], N different from rank to rank.
    """
    values = values.detach()
    if not (dist.is_available() and dist.is_initialized()):
        return values, 0
    counts = [values.new_zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
    sizes = torch.cat(counts).tolist()
    padded = values.new_zeros(max(sizes))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    whole = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return whole, sum(sizes[: dist.get_rank()])


def summed_over_ranks(values: Tensor) -> Tensor:
    """Return the sums of ``values`` over all ranks, without gradient."""
    values = values.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values

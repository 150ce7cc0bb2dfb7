"""Stopping at a non-finite loss (NaN or inf) before it reaches the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pl_prefopt.data.formats import as_fields
from pl_prefopt.errors import RunError
from pl_prefopt.files import atomic_write
from pl_prefopt.types import PreferenceBatch

_ROWS_NAMED = 5


class _Noted(NamedTuple):
    """A batch and the flags of its non-finite losses.

    Attributes:
        batch: the batch.
        flags: bool [B + 1] on the CPU: whether each prompt's loss is non-finite, and whether any prompt's is
            on any rank.
        known: the event after which the flags can be read; ``None`` if they can be read at once.
    """

    batch: PreferenceBatch
    flags: Tensor
    known: torch.Event | None


class FiniteLossGuard:
    """Checks every prompt's loss once per optimiser step, after the backward pass and before the update.

    On a GPU the flags are copied to page-locked memory before the backward pass in the stream. Waiting for
    them therefore waits for the forward pass only, with the backward pass still queued: the GPU doesn't go
    idle, and accumulated batches are checked together.

    Ranks combine their flags on the device before the copy, so that all of them stop at the same step. A rank
    that stopped alone would leave the others waiting for its gradients.
    """

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def note(self, batch: PreferenceBatch, loss: Tensor) -> None:
        """Record a training batch and its unreduced loss [B]."""
        bad = ~torch.isfinite(loss.detach())
        flags = torch.cat([bad, _in_any_process(bad)])
        if not flags.is_cuda:
            self._noted.append(_Noted(batch, flags, None))
            return
        arriving = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
        arriving.copy_(flags, non_blocking=True)
        known = torch.Event("cuda")
        known.record()
        self._noted.append(_Noted(batch, arriving, known))

    def check(self, folder: Path, *, step: int, rank: int) -> None:
        """Raise if a loss recorded since the last check is NaN or infinite, on any rank.

        Args:
            folder: the folder to write the batch's rows to, as ``bad_batch.jsonl``.
            step: the optimiser step, for the message.
            rank: this process's rank.

        Raises:
            RunError: on every rank; it names the rows on the rank that has them.
        """
        noted, self._noted = self._noted, []
        for item in noted:
            if item.known is not None:
                item.known.synchronize()
            if item.flags[:-1].any():
                path = folder / ("bad_batch.jsonl" if rank == 0 else f"bad_batch.{rank}.jsonl")
                raise RunError(_sentence(item, _write(item.batch, path), step))
            if item.flags[-1]:
                raise RunError(
                    f"non-finite loss at step {step} on another rank, whose message names the rows"
                )


def _in_any_process(bad: Tensor) -> Tensor:
    """Return bool [1], whether one of ``bad`` is true on any rank, without synchronising with the device."""
    found = bad.any().reshape(1)
    if dist.is_available() and dist.is_initialized():
        found = found.int()
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.bool()


def _write(batch: PreferenceBatch, path: Path) -> Path:
    lines = [json.dumps(as_fields(row), ensure_ascii=False) + "\n" for row in batch.rows]
    with atomic_write(path) as draft:
        draft.write_text("".join(lines), encoding="utf-8")
    return path


def _sentence(item: _Noted, path: Path, step: int) -> str:
    rows = [
        item.batch.rows[place].origin or "a row" for place in item.flags[:-1].nonzero().flatten().tolist()
    ]
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    return (
        f"non-finite loss (NaN or inf) at step {step} for {'; '.join(rows[:_ROWS_NAMED])}{more}. The step "
        f"was not taken, and all rows of the batch are in {path}: lower the learning rate, or correct or "
        "remove these rows, and resume from the last checkpoint with `--ckpt_path last`"
    )

"""Scoring a whole dataset once, in shards that survive a kill and are distributed over ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from pl_prefopt.references.base import PolicyHost, Reference
from pl_prefopt.references.tables import TableFile, read_cached, read_tensors, stack_ragged, write_tensors
from pl_prefopt.types import PreferenceBatch

ROWS_PER_SHARD = 64
"""Rows per shard, and so the work that a kill can lose."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The ranks that share the work.

    Attributes:
        rank: this process's rank.
        count: the number of ranks.
        wait: a barrier, which returns when all ranks have called it.
    """

    rank: int
    count: int
    wait: Callable[[], object]

    def share(self, parts: list[int]) -> list[int]:
        """Return this rank's parts, the same number on every rank: several may score the last part.

        A sharded model has to be run equally often on every rank.
        """
        fillers = parts[-1:] * (-len(parts) % self.count)
        return (parts + fillers)[self.rank :: self.count]


def fill_table(
    reference: Reference, host: PolicyHost, file: TableFile, *, batch_size: int, workers: Workers
) -> None:
    """Score every row of ``file.dataset`` with a reference and write the table; existing parts are reused.

    Args:
        reference: a prepared reference.
        host: the trained module.
        file: the table to fill.
        batch_size: rows per forward pass.
        workers: the ranks that share the work; each scores every ``count``-th part.
    """

    def log_probs(batch: PreferenceBatch) -> Tensor:
        values = reference.log_probs(host, batch, file.view).float()
        return values.masked_fill(~batch.trees[file.view].response_mask.any(dim=-1), torch.nan)

    table = Table(
        file=file,
        name="log_probs",
        score=log_probs,
        device=host.device,
        notes={
            "reference": reference.fingerprint(host.policy_spec),
            "dataset": file.dataset.tokens_fingerprint,
            "split": file.dataset.split,
            "view": file.view,
            "rendering": file.rendering,
        },
    )
    table.fill(batch_size=batch_size, workers=workers)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to fill with values per response.

    Attributes:
        file: the file.
        name: the tensor's name in it.
        score: returns float32 [B, R, ...] of a batch on ``device``, NaN where a response is absent.
        device: where rows are scored.
        notes: of the file.
    """

    file: TableFile
    name: str
    score: Callable[[PreferenceBatch], Tensor]
    device: torch.device
    notes: dict[str, str]

    def fill(self, *, batch_size: int, workers: Workers) -> None:
        """Score every row and write the table; existing parts are reused.

        Args:
            batch_size: rows per forward pass.
            workers: the ranks that share the work; each scores every ``count``-th part.
        """
        file = self.file
        lengths = torch.tensor(file.dataset.lengths)
        # The longest rows first: if memory doesn't suffice, this shows at once.
        order = torch.argsort(lengths, descending=True, stable=True)
        parts = torch.tensor_split(order, -(-len(order) // ROWS_PER_SHARD))
        passes = -(-len(parts[0]) // batch_size)
        missing = [number for number, rows in enumerate(parts) if not _is_done(file.part(number), rows)]
        workers.wait()  # every rank has checked for parts before one of them writes
        mine = workers.share(missing)
        for number in _shown(mine, f"{file.dataset.split} rows, view {file.view}", visible=workers.rank == 0):
            batches = torch.tensor_split(parts[number], passes)
            self._score_part(number, [rows if len(rows) else order[:1] for rows in batches])
        workers.wait()
        if workers.rank == 0:
            scored = [read_tensors(file.part(number)) for number in range(len(parts))]
            whole = stack_ragged([(part["index"], part[self.name]) for part in scored], len(file.dataset))
            write_tensors(file.path, {self.name: whole}, self.notes)
            shutil.rmtree(file.part(0).parent)
        workers.wait()

    @torch.no_grad()
    def _score_part(self, number: int, batches: Iterable[Tensor]) -> None:
        scored = []
        for index in batches:
            batch = self.file.dataset.batch(index.tolist()).to(self.device)
            scored.append((index, self.score(batch).cpu()))
        positions = torch.cat([index for index, _ in scored])
        place = {row: position for position, row in enumerate(positions.tolist())}
        local = [(torch.tensor([place[row] for row in index.tolist()]), values) for index, values in scored]
        tensors = {"index": positions, self.name: stack_ragged(local, len(positions))}
        write_tensors(self.file.part(number), tensors, self.notes)


def _is_done(part: Path, rows: Tensor) -> bool:
    """Whether a part exists and holds exactly these rows; another partition would leave out some."""
    # A row that filled an empty batch may follow them.
    held = read_cached(part)
    return held is not None and torch.equal(held["index"][: len(rows)], rows)


def _shown(numbers: list[int], what: str, *, visible: bool) -> Iterable[int]:
    return track(numbers, description=f"Scoring {what}", disable=not visible)

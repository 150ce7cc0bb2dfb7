"""Hidden states of a frozen model at the ends of responses and prompts, computed once per row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.data import PreferenceDataset
from pl_prefopt.references.precompute import Table, Workers
from pl_prefopt.references.tables import TableFile, read_cached
from pl_prefopt.types import PreferenceBatch

_NAME = "states"
FOLDER = ".cache/pl_prefopt/hidden_states"


class HiddenStateTables:
    """Tables of hidden states on disk, one per split, with checksums as those of references.

    A table is float32 [rows, 1 + R, H] with the prompt's state first, or [rows, R, H] without it; NaN where a
    row has fewer responses.

    Args:
        folder: the folder of all models' tables.
        prompts: whether prompts' states are kept, too.
    """

    def __init__(self, folder: str, *, prompts: bool) -> None:
        self.folder, self.prompts = Path(folder), prompts
        self._tables: dict[str, Tensor] = {}

    def prepare(
        self, dataset: PreferenceDataset, model: str, score: Callable[[PreferenceBatch], Tensor], trainer: Any
    ) -> None:
        """Read a split's table, or compute it and write it first.

        Args:
            dataset: the rows.
            model: what the states depend on in addition to the rows, as a folder's name.
            score: returns the states of a batch, NaN where a response is absent.
            trainer: the trainer, whose ranks share the work.
        """
        view = "ends-and-prompts" if self.prompts else "ends"
        file = TableFile(folder=self.folder / model, dataset=dataset, view=view, rendering=view)
        held = read_cached(file.path)
        trainer.strategy.barrier()  # every rank has looked before the first one writes
        if held is None:
            notes = {"model": model, "dataset": dataset.tokens_fingerprint, "split": dataset.split}
            device = trainer.strategy.root_device
            table = Table(file=file, name=_NAME, score=score, device=device, notes=notes)
            workers = Workers(
                rank=trainer.global_rank, count=trainer.world_size, wait=trainer.strategy.barrier
            )
            table.fill(batch_size=8, workers=workers)
            held = read_cached(file.path)
        assert held is not None, "it has just been written"
        self._tables[dataset.split] = held[_NAME]

    def has(self, split: str) -> bool:
        """Tell whether a split's table has been read."""
        return split in self._tables

    def of(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor | None]:
        """Return the states of a batch at the responses' ends, [B, R, H], and at the prompts', [B, H]."""
        device = batch.index.device
        states = self._tables[batch.split][list(batch.numbers)]
        states = (states.pin_memory() if device.type == "cuda" else states).to(device, non_blocking=True)
        prompt, ends = (states[:, 0], states[:, 1:]) if self.prompts else (None, states)
        ends = ends[:, : batch.present.shape[1]]
        return torch.nan_to_num(ends), prompt

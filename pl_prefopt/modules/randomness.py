"""Random numbers that depend on the position in training only, also in resumed runs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

_KEY = "pl_prefopt_seed"


class BatchSeeds:
    """Seeds each training batch from the run's seed, the batch's number and the rank.

    Dropout masks are then the same whether or not the run was interrupted before. Saved generator states
    would be needed for every rank, and depend on random numbers used between batches (a validation, a new
    data iterator). Random numbers differ between ranks. Seeding takes microseconds and doesn't synchronise
    with a GPU.
    """

    def __init__(self) -> None:
        self._run_seed: int | None = None
        self._loaded: int | None = None

    def start(self, trainer: Trainer) -> None:
        """Use the seed of the checkpoint to resume from, or this process's; rank 0's on all ranks."""
        mine = torch.initial_seed() if self._loaded is None else self._loaded
        self._run_seed, self._loaded = int(trainer.strategy.broadcast(mine)), None

    def seed(self, trainer: Trainer) -> None:
        """Seed torch on all devices, numpy and ``random`` for the next training batch."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        done = int(batches.processed)
        assert self._run_seed is not None, "training has not started"
        mixed = np.random.SeedSequence((self._run_seed, done, trainer.global_rank))
        for_torch, for_others = (int(number) for number in mixed.generate_state(2, np.uint32))
        torch.manual_seed(for_torch)
        np.random.seed(for_others)
        random.seed(for_others)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's seed, if the run has started."""
        checkpoint[_KEY] = self._run_seed

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Load the seed that ``save`` saved."""
        self._loaded = checkpoint.get(_KEY)

"""Random numbers that depend on where training is, and not on how it got there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

_KEY = "pl_prefopt_seed"


class BatchSeeds:
    """Seeds each training batch anew, from the run's seed, the batch's number and the rank.

    Dropout then draws the same numbers whether or not the run was interrupted before: generator states would
    have to be kept for every rank, and what happens between batches (a validation, a new iterator of the
    data) would have to draw the same numbers again. Ranks draw different numbers. Seeding takes microseconds
    and doesn't wait for a GPU.
    """

    def __init__(self) -> None:
        self._run_seed: int | None = None
        self._loaded: int | None = None

    def start(self, trainer: Trainer) -> None:
        """Take the seed of the checkpoint that the run goes on from, or of this process, rank 0's for all."""
        mine = torch.initial_seed() if self._loaded is None else self._loaded
        self._run_seed, self._loaded = int(trainer.strategy.broadcast(mine)), None

    def seed(self, trainer: Trainer) -> None:
        """Seed torch on all devices, numpy and ``random`` for the training batch that is about to be used."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        done = int(batches.processed)
        assert self._run_seed is not None, "training has not started"
        mixed = np.random.SeedSequence((self._run_seed, done, trainer.global_rank))
        for_torch, for_others = (int(number) for number in mixed.generate_state(2, np.uint32))
        torch.manual_seed(for_torch)
        np.random.seed(for_others)
        random.seed(for_others)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Note the run's seed, if it has started."""
        checkpoint[_KEY] = self._run_seed

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed that ``save`` noted."""
        self._loaded = checkpoint.get(_KEY)

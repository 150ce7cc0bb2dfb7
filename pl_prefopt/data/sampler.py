"""Length-grouped batches: seeded, equally many on each rank, and resumable mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

_BATCHES_SORTED_TOGETHER = 50


class EpochRows(Protocol):
    """Which rows each epoch has; ``mixtures.Mixture`` implements it."""

    def __len__(self) -> int:
        """Return the number of rows per epoch."""

    def rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the rows of an epoch; with a token limit, the same ones in each."""

    def most(self) -> npt.NDArray[np.int64]:
        """Return all rows, each as often as it can occur in one epoch."""


class LengthGroupedSampler(DistributedSampler[list[int]]):
    """Yields batches of rows of similar length, as lists of row numbers.

    With ``shuffle``, it permutes all rows, sorts them by length within blocks of up to 50 batches per rank,
    cuts the blocks into batches and permutes those. Without, it goes from the longest rows to the shortest.
    The ranks take neighbouring batches, so that they wait little for each other. Each row occurs once per
    epoch over all ranks, unless a ``mixture`` says otherwise; where the last rows cannot be divided evenly,
    ranks get fillers ``~i``.

    With ``max_tokens``, a batch also has at most that many tokens, each prompt counted once; a longer row is
    a batch by itself. Which rows share a batch is then the same in every epoch, since Lightning reads the
    number of batches per epoch only once; the order of the batches still changes.

    With ``keys``, an epoch goes through the rows by ascending key instead; rows with equal keys are shuffled.
    Each step takes the next rows, and its ranks share them by length.

    It derives from ``DistributedSampler`` so that Lightning does not replace it.

    Args:
        lengths: int64 [rows], number of tokens per row.
        batch_size: rows per batch and rank.
        max_tokens: maximum number of tokens per batch and rank; ``None`` for no limit.
        shuffle: whether the order changes from epoch to epoch.
        seed: random seed of the order.
        keys: float64 [rows], the order of the rows; ``None`` for a random one.
        mixture: which rows each epoch has; ``None`` for each row once.
        num_replicas: the number of ranks.
        rank: this rank.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int64],
        batch_size: int,
        *,
        shuffle: bool,
        max_tokens: int | None = None,
        seed: int = 0,
        keys: npt.NDArray[np.float64] | None = None,
        mixture: EpochRows | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(
            _Rows(len(lengths)), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed
        )
        self._lengths = np.asarray(lengths)
        self._filler = ~int(np.argmin(self._lengths)) if len(self._lengths) else ~0
        self._batch_size, self._max_tokens, self._keys = batch_size, max_tokens, keys
        self._mixture = mixture
        self._resume_at = (-1, 0)

    def __len__(self) -> int:
        """Return the number of batches per epoch on each rank."""
        if self._max_tokens is not None:
            return len(self._steps())
        return -(-self.rows_per_epoch // (self._batch_size * self.num_replicas))

    @property
    def rows_per_epoch(self) -> int:
        """The number of rows per epoch over all ranks, repeated ones counted repeatedly."""
        return len(self._lengths) if self._mixture is None else len(self._mixture)

    def __iter__(self) -> Iterator[list[int]]:
        """Return this rank's batches of this epoch, without those that ``resume`` skips."""
        epoch, done = self._resume_at
        steps = self._steps()
        return iter([step[self.rank] for step in steps[done if epoch == self.epoch else 0 :]])

    def resume(self, epoch: int, batches_done: int) -> None:
        """Skip the first ``batches_done`` batches of ``epoch``. Other epochs are complete."""
        self._resume_at = (epoch, batches_done)
        self.set_epoch(epoch)

    def reorder(self, keys: npt.NDArray[np.float64]) -> None:
        """Take other ``keys``, from the next epoch that is begun."""
        self._keys = keys

    def _steps(self) -> list[list[list[int]]]:
        """Return all batches of this epoch: per step, one batch per rank."""
        a_step = self._batch_size * self.num_replicas
        random = np.random.default_rng((self.seed, self._order_of(self.epoch)))
        once = random if self._max_tokens is None else np.random.default_rng(self.seed)
        order = self._rows_of_epoch()
        if self.shuffle or self._keys is not None:
            order = order[once.permutation(len(order))]
        if self._keys is not None:
            return self._cut(order[np.argsort(self._keys[order], kind="stable")], a_step)
        run = a_step * self._steps_sorted_together() if self.shuffle else len(order)
        steps: list[list[list[int]]] = []
        for start in range(0, len(order), run):
            rows = order[start : start + run]
            rows = rows[np.argsort(-self._lengths[rows], kind="stable")]
            if self._max_tokens is not None:
                steps += self._within_tokens(rows.tolist(), self._max_tokens)
                continue
            steps += [self._shared_out(rows[at : at + a_step].tolist()) for at in range(0, len(rows), a_step)]
        return [steps[i] for i in random.permutation(len(steps))] if self.shuffle else steps

    def _cut(self, rows: npt.NDArray[np.int64], a_step: int) -> list[list[list[int]]]:
        """Cut rows into steps without changing their order, but for who gets which within a step."""
        if self._max_tokens is not None:
            return self._within_tokens(rows.tolist(), self._max_tokens)
        steps = (rows[at : at + a_step] for at in range(0, len(rows), a_step))
        return [
            self._shared_out(step[np.argsort(-self._lengths[step], kind="stable")].tolist()) for step in steps
        ]

    def _rows_of_epoch(self) -> npt.NDArray[np.int64]:
        if self._mixture is None:
            return np.arange(len(self._lengths))
        return self._mixture.rows(self._order_of(self.epoch)) if self.shuffle else self._mixture.most()

    def _order_of(self, epoch: int) -> int:
        """Return the epoch whose order is used in ``epoch``."""
        return epoch

    def _steps_sorted_together(self) -> int:
        """Return the number of steps per sorted block, small enough that batches vary in small data sets."""
        quarter = self.rows_per_epoch // (4 * self._batch_size * self.num_replicas)
        return max(1, min(_BATCHES_SORTED_TOGETHER, quarter))

    def _shared_out(self, rows: list[int]) -> list[list[int]]:
        """Divide the rows of a step among the ranks: neighbouring rows, equally many each."""
        a_rank = -(-len(rows) // self.num_replicas)
        rows = rows + [self._filler] * (a_rank * self.num_replicas - len(rows))
        return [rows[rank * a_rank : (rank + 1) * a_rank] for rank in range(self.num_replicas)]

    def _within_tokens(self, rows: list[int], limit: int) -> list[list[list[int]]]:
        """Cut rows in their order into batches within the limits, and the batches into steps."""
        batches: list[list[int]] = [[]]
        tokens = 0
        for row in rows:
            length = int(self._lengths[row])
            if batches[-1] and (len(batches[-1]) == self._batch_size or tokens + length > limit):
                batches.append([])
                tokens = 0
            batches[-1].append(row)
            tokens += length
        batches += [[self._filler]] * (-len(batches) % self.num_replicas)
        return [batches[at : at + self.num_replicas] for at in range(0, len(batches), self.num_replicas)]


class SameOrderSampler(LengthGroupedSampler, SequentialSampler):  # type: ignore[misc]
    """Yields the batches of the first epoch in every epoch, for ``overfit_batches``.

    It derives from ``SequentialSampler`` so that Lightning does not replace it in that mode either.
    """

    def _order_of(self, epoch: int) -> int:
        return 0


class _Rows(Dataset[int], Sized):
    """A stub that gives ``DistributedSampler`` the length of the dataset."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

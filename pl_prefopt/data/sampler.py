"""Batches of rows of similar length: seeded, the same number on each rank, and resumable in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

_BATCHES_SORTED_TOGETHER = 50


class LengthGroupedSampler(DistributedSampler[list[int]]):
    """Yields batches as lists of row numbers.

    Shuffled, it permutes all rows, sorts them by length within runs of up to 50 batches a rank, cuts the runs
    into batches and permutes those. Unshuffled, it goes from the longest rows to the shortest. Ranks take
    neighbouring batches, so that none waits long for the others. Each row comes once an epoch over all ranks;
    where the last rows do not go round, a rank gets fillers ``~i``.

    With ``max_tokens`` a batch also holds at most so many tokens, each prompt's counted once; a row that is
    longer is a batch by itself. Which rows share a batch is then the same in every epoch, since Lightning
    asks only once how many batches an epoch has; the order of the batches still changes.

    It is a ``DistributedSampler`` so that Lightning leaves it in place.

    Args:
        lengths: int64 [rows], tokens of each row.
        batch_size: rows a batch and rank.
        max_tokens: the most tokens a batch and rank; ``None`` for no limit.
        shuffle: whether the order changes from epoch to epoch.
        seed: of the order.
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
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(
            _Rows(len(lengths)), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed
        )
        self._lengths = np.asarray(lengths)
        self._batch_size, self._max_tokens = batch_size, max_tokens
        self._resume_at = (-1, 0)

    def __len__(self) -> int:
        """Return the batches of a whole epoch on each rank."""
        if self._max_tokens is not None:
            return len(self._steps())
        return -(-len(self._lengths) // (self._batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[list[int]]:
        """Return this rank's batches of this epoch, without those that ``resume`` leaves out."""
        epoch, done = self._resume_at
        steps = self._steps()
        return iter([step[self.rank] for step in steps[done if epoch == self.epoch else 0 :]])

    def resume(self, epoch: int, batches_done: int) -> None:
        """Continue in ``epoch`` after its first ``batches_done`` batches. Other epochs are whole."""
        self._resume_at = (epoch, batches_done)
        self.set_epoch(epoch)

    def _steps(self) -> list[list[list[int]]]:
        """Return all batches of this epoch: one a rank, step by step."""
        a_step = self._batch_size * self.num_replicas
        random = np.random.default_rng((self.seed, self._order_of(self.epoch)))
        once = random if self._max_tokens is None else np.random.default_rng(self.seed)
        order = once.permutation(len(self._lengths)) if self.shuffle else np.arange(len(self._lengths))
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

    def _order_of(self, epoch: int) -> int:
        """Return the epoch whose order ``epoch`` has."""
        return epoch

    def _steps_sorted_together(self) -> int:
        """Return few enough that the same rows do not meet again each epoch, even in a small data set."""
        quarter = len(self._lengths) // (4 * self._batch_size * self.num_replicas)
        return max(1, min(_BATCHES_SORTED_TOGETHER, quarter))

    def _shared_out(self, rows: list[int]) -> list[list[int]]:
        """Give each rank neighbouring rows, as many as the others."""
        a_rank = -(-len(rows) // self.num_replicas)
        rows = rows + [self._filler] * (a_rank * self.num_replicas - len(rows))
        return [rows[rank * a_rank : (rank + 1) * a_rank] for rank in range(self.num_replicas)]

    def _within_tokens(self, rows: list[int], limit: int) -> list[list[list[int]]]:
        """Cut rows, the longest first, into batches within the limits, and those into steps."""
        batches: list[list[int]] = [[]]
        for row in rows:
            tokens = self._lengths[[*batches[-1], row]].sum()
            if batches[-1] and (len(batches[-1]) == self._batch_size or tokens > limit):
                batches.append([])
            batches[-1].append(row)
        batches += [[self._filler]] * (-len(batches) % self.num_replicas)
        return [batches[at : at + self.num_replicas] for at in range(0, len(batches), self.num_replicas)]

    @property
    def _filler(self) -> int:
        return ~int(np.argmin(self._lengths))


class SameOrderSampler(LengthGroupedSampler, SequentialSampler):  # type: ignore[misc]
    """Yields the batches of the first epoch in each epoch, for ``overfit_batches``.

    It is a ``SequentialSampler`` so that Lightning leaves it in place there, too.
    """

    def _order_of(self, epoch: int) -> int:
        return 0


class _Rows(Dataset[int], Sized):
    """What ``DistributedSampler`` wants to know of a dataset: its length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

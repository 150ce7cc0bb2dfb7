"""Each row once an epoch, in batches of similar length, evenly over the ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from pl_prefopt.data import LengthGroupedSampler


def lengths(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(1, 1000, rows)


def samplers(rows: int, batch_size: int, ranks: int, **options) -> list[LengthGroupedSampler]:
    return [
        LengthGroupedSampler(lengths(rows), batch_size, num_replicas=ranks, rank=rank, **options)
        for rank in range(ranks)
    ]


@given(
    rows=st.integers(1, 300),
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 5),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_all_ranks_together_see_each_row_once(
    rows: int, batch_size: int, ranks: int, shuffle: bool, epoch: int
):
    batches = []
    for sampler in samplers(rows, batch_size, ranks, shuffle=shuffle, seed=3):
        sampler.set_epoch(epoch)
        batches.append(list(sampler))
        assert len(batches[-1]) == len(sampler)
    for step in zip(*batches, strict=True):
        assert len({len(batch) for batch in step}) == 1
        assert 1 <= len(step[0]) <= batch_size
    flat = [index for rank in batches for batch in rank for index in batch]
    assert sorted(index for index in flat if index >= 0) == list(range(rows))
    fillers = [~index for index in flat if index < 0]
    assert len(fillers) < ranks
    assert all(0 <= filler < rows for filler in fillers)


def test_batches_hold_rows_of_similar_length():
    sampler = LengthGroupedSampler(lengths(1000), 8, shuffle=True)
    spread = np.mean([np.ptp(lengths(1000)[batch]) for batch in sampler])
    assert spread < 100


def test_the_order_is_seeded_and_changes_with_the_epoch():
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = LengthGroupedSampler(lengths(100), 4, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_without_shuffling_the_longest_come_first_whatever_the_epoch():
    sampler = LengthGroupedSampler(lengths(50), 4, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first
    flat = [lengths(50)[row] for batch in first for row in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_resuming_leaves_out_what_is_done_in_that_epoch_only(rank: int):
    whole, resumed = (samplers(100, 4, 2, shuffle=True)[rank] for _ in range(2))
    whole.set_epoch(2)
    resumed.resume(2, 5)
    assert list(resumed) == list(whole)[5:]
    assert len(resumed) == len(whole)
    for sampler in (whole, resumed):
        sampler.set_epoch(3)
    assert list(resumed) == list(whole)


def test_lightning_leaves_it_in_place():
    assert isinstance(LengthGroupedSampler(lengths(3), 1, shuffle=True), DistributedSampler)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    size=st.integers(1, 6),
    limit=st.integers(1, 150),
    ranks=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_token_limits_hold_and_no_row_is_lost(lengths, size, limit, ranks, epoch):
    samplers = [
        LengthGroupedSampler(
            np.array(lengths), size, shuffle=True, max_tokens=limit, num_replicas=ranks, rank=rank
        )
        for rank in range(ranks)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(samplers[0])}
    real = [row for own in batches for batch in own for row in batch if row >= 0]
    assert sorted(real) == list(range(len(lengths)))
    for batch in (batch for own in batches for batch in own):
        assert len(batch) <= size
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= limit


def test_token_limited_batches_come_in_another_order_each_epoch():
    sampler = LengthGroupedSampler(np.arange(1, 41), 4, shuffle=True, max_tokens=60)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    assert sorted(map(sorted, first)) == sorted(map(sorted, second))

"""Trees in rows."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt.scoring.packing import EVEN_WIDTH, pack, pack_behind


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=12), data=st.data())
def test_every_tree_has_a_place_of_its_own(lengths, data):
    common = data.draw(st.integers(0, min(lengths)))
    packing = pack(lengths, common)
    spans = sorted(
        (row, start, start + length - common)
        for row, start, length in zip(packing.row, packing.start, lengths, strict=True)
    )
    assert {row for row, *_ in spans} == set(range(packing.rows))
    assert max(end for *_, end in spans) == packing.width
    assert min(start for _, start, _ in spans) == common
    for (row, _, end), (next_row, start, _) in itertools.pairwise(spans):
        assert (row, end) == (next_row, start) or (row < next_row and start == common)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_no_dearer_than_a_row_a_tree(lengths):
    assert pack(lengths, 0).cost <= len(lengths) * max(lengths) * (EVEN_WIDTH + max(lengths))


def test_short_trees_share_a_row_and_long_ones_do_not():
    assert pack([300, 40, 60, 80], 0).rows == 1
    assert pack([8000, 8000], 0).rows == 2
    assert pack([8000, 4000, 3900], 0).rows == 2


def test_what_is_common_is_held_once_a_row():
    assert pack([110, 120, 130], 100).width == 100 + 10 + 20 + 30


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 900)), min_size=1, max_size=12))
def test_heads_that_are_read_stand_before_all_that_is_computed(sizes):
    heads = [head for head, _ in sizes]
    packing = pack_behind([head + rest for head, rest in sizes], heads)
    rests = pack([rest for _, rest in sizes], 0)
    assert (packing.row, packing.rows) == (rests.row, rests.rows)
    assert packing.start == tuple(packing.read + start for start in rests.start)
    assert packing.width == packing.read + rests.width
    spans = sorted(zip(packing.row, packing.head_start, heads, strict=True))
    for (row, start, head), (next_row, next_start, _) in itertools.pairwise(spans):
        assert row < next_row or start + head == next_start
    assert packing.read == max(start + head for _, start, head in spans)

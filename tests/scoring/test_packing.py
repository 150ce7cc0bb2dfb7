"""Trees in rows."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt.scoring.packing import EVEN_WIDTH, pack


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

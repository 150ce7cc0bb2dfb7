"""Which response beats which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt.pairing import AllPairs, BestAgainstEach, BestAgainstWorst

NAN = float("nan")
ALL = (AllPairs(), BestAgainstWorst(), BestAgainstEach())


def pairs(pairing, scores, present=None):
    scores = torch.tensor([scores])
    present = torch.ones(scores.shape, dtype=torch.bool) if present is None else torch.tensor([present])
    wins = pairing(scores, present)
    assert wins.dtype == torch.bool
    assert wins.shape == (1, scores.shape[1], scores.shape[1])
    return {tuple(pair) for pair in wins[0].nonzero().tolist()}


@pytest.mark.parametrize(
    ("pairing", "scores", "expected"),
    [
        (AllPairs(), [3.0, 1.0, 2.0], {(0, 1), (0, 2), (2, 1)}),
        (BestAgainstWorst(), [3.0, 1.0, 2.0], {(0, 1)}),
        (BestAgainstEach(), [3.0, 1.0, 2.0], {(0, 1), (0, 2)}),
        # ties never pair; tied best and worst responses all take part
        (AllPairs(), [2.0, 1.0, 2.0], {(0, 1), (2, 1)}),
        (BestAgainstWorst(), [2.0, 1.0, 2.0], {(0, 1), (2, 1)}),
        (BestAgainstWorst(), [2.0, 1.0, 0.0, 0.0], {(0, 2), (0, 3)}),
        (BestAgainstEach(), [2.0, 1.0, 2.0], {(0, 1), (2, 1)}),
        # unknown scores never pair, and are neither best nor worst
        (AllPairs(), [NAN, 1.0, 2.0], {(2, 1)}),
        (BestAgainstWorst(), [NAN, 1.0, 2.0, 1.5], {(2, 1)}),
        (BestAgainstEach(), [NAN, 1.0, 2.0, 1.5], {(2, 1), (2, 3)}),
    ],
)
def test_by_hand(pairing, scores, expected):
    assert pairs(pairing, scores) == expected


@pytest.mark.parametrize("pairing", ALL)
def test_absent_responses_never_pair_whatever_their_score(pairing):
    assert pairs(pairing, [1.0, 9.0, 0.0, -9.0], [True, False, True, False]) == {(0, 2)}


@pytest.mark.parametrize("pairing", ALL)
@pytest.mark.parametrize("scores", [[1.0, 1.0], [NAN, NAN], [NAN, 1.0], [1.0]])
def test_nothing_to_compare(pairing, scores):
    assert pairs(pairing, scores) == set()


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, NAN]), min_size=1, max_size=5), st.randoms())
def test_order_of_the_responses_does_not_matter(scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    for pairing in ALL:
        shuffled = pairs(pairing, [scores[place] for place in order])
        assert {(order[i], order[j]) for i, j in shuffled} == pairs(pairing, scores)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, NAN]), min_size=1, max_size=5))
def test_the_narrower_pairings_pick_among_all_pairs(scores):
    worst, each, everything = (
        pairs(pairing, scores) for pairing in (BestAgainstWorst(), BestAgainstEach(), AllPairs())
    )
    assert worst <= each <= everything
    assert bool(worst) == bool(everything)


def test_equal_settings_are_equal():
    assert AllPairs() == AllPairs()
    assert hash(BestAgainstEach()) == hash(BestAgainstEach())
    assert AllPairs() != BestAgainstEach()

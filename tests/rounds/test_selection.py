"""Which rows the responses to a prompt give."""

from __future__ import annotations

import itertools
import math

import pytest

from pl_prefopt.errors import ConfigError
from pl_prefopt.rounds import (
    AllResponses,
    AllWithWinRates,
    Best,
    BestAgainstWorst,
    Candidate,
    Candidates,
    CurriculumPairs,
    GoldAgainstOwn,
    LargeMargins,
    SoftPairs,
)


def judged(*scores, probabilities=None, gold=None) -> Candidates:
    members = [Candidate(response=f"r{place}", score=score) for place, score in enumerate(scores)]
    if gold is not None:
        members.append(Candidate(response=[{"role": "assistant", "content": "gold"}], score=gold, own=False))
    return Candidates(tuple(members), probabilities)


def pairs(rows):
    return [(row["chosen"], row["rejected"]) for row in rows]


EVERY = (
    BestAgainstWorst(),
    AllResponses(),
    AllWithWinRates(),
    CurriculumPairs(),
    SoftPairs(),
    Best(),
    LargeMargins(),
)


@pytest.mark.parametrize("selection", EVERY, ids=lambda one: type(one).__name__)
def test_a_judge_that_ties_everything_and_too_few_responses_give_nothing(selection):
    assert selection(judged(5.0, 5.0, 5.0), 1) == []
    assert selection(judged(5.0), 1) == []
    assert selection(judged(), 1) == []


def test_best_against_worst():
    rows = BestAgainstWorst()(judged(2.0, 9.0, 1.0, 9.0), 1)
    assert pairs(rows) == [("r1", "r2")]
    assert (rows[0]["score_chosen"], rows[0]["score_rejected"]) == (9.0, 1.0)
    assert BestAgainstWorst(min_gap=8.5)(judged(2.0, 9.0, 1.0), 1) == []
    with pytest.raises(ConfigError, match="min_gap"):
        BestAgainstWorst(min_gap=-1.0)


def test_dno_takes_large_margins_only():
    rows = LargeMargins()(judged(6.0, 5.0, 4.0, 3.0, gold=5.5), 1)
    gold = [{"role": "assistant", "content": "gold"}]
    assert pairs(rows) == [
        ("r0", "r1"),
        ("r0", "r2"),
        ("r0", "r3"),
        (gold, "r3"),
        ("r1", "r2"),
        ("r1", "r3"),
    ]


def test_win_rates_include_the_response_itself():
    (row,) = AllWithWinRates(temperature=2.0)(judged(1.0, 3.0), 1)
    better = 1 / (1 + math.exp(-1.0))
    assert row["scores"] == pytest.approx([(0.5 + 1 - better) / 2, (0.5 + better) / 2])
    cycle = [[0.5, 1.0, 0.2], [0.0, 0.5, 1.0], [0.8, 0.0, 0.5]]
    (row,) = AllWithWinRates()(judged(0.0, 0.0, 0.0, probabilities=cycle), 1)
    assert row["scores"] == pytest.approx([1.7 / 3, 1.5 / 3, 1.3 / 3])
    assert sum(row["scores"]) == pytest.approx(1.5)


def test_spin_sets_gold_against_each_own_sample():
    rows = GoldAgainstOwn()(judged(0.0, 0.0, gold=0.0), 1)
    assert [row["rejected"] for row in rows] == ["r0", "r1"]
    assert rows[0]["chosen"][0]["content"] == "gold"
    assert "score_chosen" not in rows[0]
    assert GoldAgainstOwn()(judged(0.0, 0.0), 1) == []


def test_a_curriculum_pairs_the_best_with_each_other_one_from_easy_to_hard():
    candidates = judged(5.0, 2.0, 4.0, 3.0)
    rows = [row for number in (1, 2, 3) for row in CurriculumPairs()(candidates, number)]
    assert pairs(rows) == [("r0", "r1"), ("r0", "r3"), ("r0", "r2")]
    gaps = [row["score_chosen"] - row["score_rejected"] for row in rows]
    assert all(before >= after for before, after in itertools.pairwise(gaps))
    assert pairs(CurriculumPairs()(candidates, 4)) == [("r0", "r2")]
    assert pairs(CurriculumPairs()(judged(5.0, 5.0, 1.0), 1)) == [("r0", "r2")]


def test_soft_pairs_carry_the_strength_of_each():
    rows = SoftPairs(temperature=0.5)(judged(1.0, 2.0, 1.0), 1)
    assert pairs(rows) == [("r1", "r0"), ("r1", "r2")]
    assert rows[0]["preference"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    for name in ("chosen", "prompt_rejected", "number"):
        with pytest.raises(ConfigError, match=f"`column` of SoftPairs .* extra column, got '{name}'"):
            SoftPairs(column=name)


def test_the_best_response_alone_and_columns_of_responses():
    columns = [{"reference_sample": False, "log_prob": -3.0}, {"reference_sample": True}]
    members = tuple(
        Candidate(response=text, score=score, columns=own)
        for text, score, own in zip(("a", "b"), (1.0, 2.0), columns, strict=True)
    )
    assert Best()(Candidates(members), 1) == [{"completion": "b", "label": True}]
    (row,) = BestAgainstWorst()(Candidates(members), 1)
    assert (row["reference_sample"], row["log_prob"]) == ([True, False], [None, -3.0])


def test_empty_repeated_and_unscored_responses_are_left_out():
    texts = ("a", " ", "a ", "b", "c")
    scores = (1.0, 9.0, 8.0, None, 2.0)
    members = tuple(Candidate(response=t, score=s) for t, s in zip(texts, scores, strict=True))
    matrix = [[10 * i + j for j in range(5)] for i in range(5)]
    usable = Candidates(members, matrix).usable()
    assert [one.response for one in usable.members] == ["a", "c"]
    assert usable.probabilities == [[0, 4], [40, 44]]

"""Transforms of rows: what comes out, by hand; what they refuse; what is printed and cached."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from pl_prefopt.data import Cache, PreferenceDataModule
from pl_prefopt.data.formats import as_fields, to_row
from pl_prefopt.data.sources import Source
from pl_prefopt.data.store import store_rows
from pl_prefopt.data.transforms import (
    AllPairs,
    BalanceLengths,
    BestAgainstEach,
    BestAgainstRest,
    CapSources,
    CrossFilter,
    FlipWeak,
    KeepColumn,
    KeepScoreGap,
    PromptContrast,
    RemoveDuplicates,
    RemoveLeakage,
    RemoveNearDuplicates,
    RowTransform,
    SmoothWeak,
    SoftLabels,
    Strength,
    transform_rows,
)
from pl_prefopt.data.transforms.filters import length_gap
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.views import ContrastPrompt
from tests.data.support import pair, write_jsonl
from tests.support import tiny_tokenizer


def stored(tmp_path, rows):
    cache = Cache(tmp_path / "cache")
    return cache, store_rows(cache, Source.of(rows), on_bad_row="error", max_rows=None)


def after(tmp_path, rows, *transforms, held_out=()):
    """Return what comes out, as rows, and the lines that are printed."""
    cache, store = stored(tmp_path, rows)
    others = [stored(tmp_path, held_out)[1]] if held_out else []
    found = transform_rows(
        cache, store, transforms, held_out=others, held_out_key=[one.content for one in others]
    )
    return list(found.store.rows), [str(change) for change in found.changes]


def numbers(rows):
    """Return the numbers in the prompts "Question 3?" of rows."""
    return [int(row.prompt[0].content.split()[1].rstrip("?")) for row in rows]


def texts(row):
    return [one[-1].content for one in row.responses]


# The worked row of the public data set with ten reward models' scores (Secrets of RLHF part II).
CHOSEN = [
    3.71875,
    0.58984375,
    3.390625,
    0.006805419921875,
    -0.6953125,
    1.0390625,
    1.4140625,
    0.8359375,
    3.078125,
    2,
]
REJECTED = [
    3.546875,
    0.9921875,
    2.125,
    -0.330078125,
    1.171875,
    1.2578125,
    1.078125,
    1.0546875,
    3.546875,
    2.265625,
]
TEN = tuple(f"rm_{number}" for number in range(10))


def ten_models():
    return pair(0) | dict(zip(TEN, map(list, zip(CHOSEN, REJECTED, strict=True)), strict=True))


def test_the_strength_of_an_ensemble_has_the_population_deviation(tmp_path):
    (row,), lines = after(tmp_path, [ten_models()], Strength(columns=TEN))
    assert row.columns["strength"] == pytest.approx(-0.1331085, abs=1e-7)
    assert row.columns["strength_std"] == pytest.approx(0.7559609, abs=1e-7)
    assert lines[0].endswith(": 1 rows -> 1, 0 removed, 1 changed")


def test_flipping_swaps_the_responses_with_their_values_and_twice_is_nothing(tmp_path):
    once = (Strength(columns=TEN), FlipWeak(below=0))
    (row,), _ = after(tmp_path, [ten_models()], *once)
    assert texts(row) == [pair(0)["rejected"], pair(0)["chosen"]]
    assert (row.scores, row.columns["rm_0"]) == ((1, 0), (3.546875, 3.71875))
    assert row.columns["strength"] == pytest.approx(0.1331085, abs=1e-7)
    (back,), _ = after(tmp_path, [ten_models()], *once, FlipWeak(below=1))
    assert (back, *after(tmp_path, [ten_models()], once[0])[0]) == (back, back)
    # Weighing by a reward per response flips by its difference.
    (row,), _ = after(tmp_path, [ten_models()], FlipWeak(column="rm_1", below=0))
    assert texts(row)[0] == pair(0)["rejected"]


def test_the_weakest_share_is_flipped_and_graded_scores_stay_with_the_preferred_one(tmp_path):
    rows = [
        pair(n) | {"score_chosen": 5, "score_rejected": 2, "strength": float(s)}
        for n, s in enumerate((3, -2, 1, -1, 0))
    ]
    found, lines = after(tmp_path, rows, FlipWeak(share=0.4))
    assert [texts(row)[0].startswith("Bad") for row in found] == [False, True, False, True, False]
    assert [row.columns["strength"] for row in found] == [3, 2, 1, 1, 0]
    assert {row.scores for row in found} == {(5, 2)}
    assert lines == ["FlipWeak(column='strength', below=None, share=0.4): 5 rows -> 5, 0 removed, 2 changed"]
    with pytest.raises(ConfigError, match="either `below` or `share`"):
        FlipWeak()


def test_weak_pairs_are_smoothed(tmp_path):
    rows = [pair(n) | {"strength": s} for n, s in enumerate((-0.5, 0.5))]
    found, _ = after(tmp_path, rows, SmoothWeak(alpha=0.2))
    assert [row.columns["preference"] for row in found] == [0.8, 1.0]
    found, _ = after(tmp_path, rows, SmoothWeak(alpha=0.2, below=0.6, absolute=True))
    assert [row.columns["preference"] for row in found] == [0.8, 0.8]


RANKED = {
    "prompt": "Question 0?",
    "responses": ["worst", "best", "good", "also good"],
    "scores": [2, 5, 4, 4],
    "reward": [0.0, 3.0, 1.0, 2.0],
    "weight": 2,
}


def test_a_list_becomes_all_its_pairs_or_the_best_against_the_rest(tmp_path):
    found, lines = after(tmp_path, [RANKED], AllPairs())
    assert [tuple(texts(row)) for row in found] == [
        ("best", "worst"),
        ("best", "good"),
        ("best", "also good"),
        ("good", "worst"),
        ("also good", "worst"),
    ]
    assert found[1].scores == (5, 4)
    assert found[1].columns["reward"] == (3, 1)
    assert lines == ["AllPairs(weigh=False): 1 rows -> 5, 0 removed, 1 changed"]
    found, _ = after(tmp_path, [RANKED], BestAgainstRest(weigh=True))
    assert [tuple(texts(row)) for row in found] == [
        ("best", "worst"),
        ("best", "good"),
        ("best", "also good"),
    ]
    assert [row.columns["weight"] for row in found] == [pytest.approx(2 / 3)] * 3
    bare = {**RANKED, "ranks": [3, 1, 2, 2]}
    del bare["scores"]
    assert after(tmp_path, [bare], BestAgainstRest())[0][0].scores == (1, 0)


def test_a_curriculum_goes_from_the_largest_gap_to_the_smallest(tmp_path):
    found, _ = after(tmp_path, [RANKED], BestAgainstEach())
    assert [(texts(row)[1], row.columns["stage"]) for row in found] == [
        ("worst", 0),
        ("good", 1),
        ("also good", 2),
    ]
    gaps = [row.scores[0] - row.scores[1] for row in found]
    assert gaps == sorted(gaps, reverse=True)
    found, _ = after(tmp_path, [RANKED], BestAgainstEach(), KeepColumn(column="stage", least=1))
    assert len(found) == 2


def test_soft_labels_are_those_of_bradley_and_terry(tmp_path):
    found, _ = after(tmp_path, [RANKED], BestAgainstRest(), SoftLabels(temperature=2.0))
    assert [row.columns["preference"] for row in found] == pytest.approx(
        [1 / (1 + math.exp(-gap / 2)) for gap in (3, 1, 1)]
    )
    found, _ = after(tmp_path, [RANKED], AllPairs(), SoftLabels(temperature=1.0, column="reward", into="q"))
    assert found[4].columns["q"] == pytest.approx(1 / (1 + math.exp(-2)))


def test_rows_are_kept_by_gap_by_confidence_and_by_margin(tmp_path):
    rows = [
        pair(n) | {"score_chosen": 1 + n, "score_rejected": 1, "confidence": n / 4, "reward": [0.0, float(n)]}
        for n in range(1, 5)
    ]
    assert numbers(after(tmp_path, rows, KeepScoreGap(least=2))[0]) == [2, 3, 4]
    assert numbers(after(tmp_path, rows, KeepScoreGap(least=2, most=3))[0]) == [2, 3]
    assert numbers(after(tmp_path, rows, KeepColumn(column="confidence", most=0.5))[0]) == [1, 2]
    kept, lines = after(tmp_path, rows, KeepColumn(column="reward", least=-2))
    assert numbers(kept) == [1, 2]
    assert lines[0].endswith("4 rows -> 2, 2 removed, 0 changed")
    with pytest.raises(DataError, match=r"needs graded scores, but .* says only which response is better"):
        after(tmp_path, [pair(0)], KeepScoreGap(least=1))
    with pytest.raises(
        DataError, match="a number in the column 'sure', got nothing in rows in memory, row 1"
    ):
        after(tmp_path, [pair(0)], KeepColumn(column="sure", least=1))
    with pytest.raises(DataError, match=r"expected rows after KeepScoreGap.*, got none"):
        after(tmp_path, rows, KeepScoreGap(least=99))


def test_a_peer_selects_the_share_that_it_finds_easiest(tmp_path):
    margins = [0.5, -1, 2, 0.1, 3, -4, 1, 0.2]
    rows = [pair(n) | {"peer": [margin, 0.0]} for n, margin in enumerate(margins)]
    assert numbers(after(tmp_path, rows, CrossFilter(column="peer", noise_rate=0.25))[0]) == [
        0,
        2,
        3,
        4,
        6,
        7,
    ]
    # Of each batch of four, round(0.5 · 4) rows.
    half = CrossFilter(column="peer", noise_rate=0.5, batch=4)
    assert numbers(after(tmp_path, rows, half)[0]) == [0, 2, 4, 6]
    assert len(after(tmp_path, rows, CrossFilter(column="peer", noise_rate=0.0))[0]) == 8
    # The largest margins are the smallest Bradley-Terry losses.
    losses = np.logaddexp(0, -np.array(margins))
    assert set(np.argsort(losses)[:6]) == {0, 2, 3, 4, 6, 7}


def test_flipped_labels_are_seldom_among_the_selected(tmp_path):
    random = np.random.default_rng(0)
    wrong = random.uniform(size=200) < 0.3
    margins = random.normal(1.0, 1.0, 200) * np.where(wrong, -1, 1)
    rows = [pair(n) | {"peer": float(margin)} for n, margin in enumerate(margins)]
    kept = numbers(after(tmp_path, rows, CrossFilter(column="peer", noise_rate=0.3))[0])
    assert wrong[kept].mean() < 0.5 * wrong.mean()


def test_sources_are_capped(tmp_path):
    rows = [pair(n) | {"source": "ab"[n % 2]} for n in range(10)]
    found, _ = after(tmp_path, rows, CapSources(most=3, by_source={"b": 1}))
    assert [row.source for row in found].count("a") == 3
    assert [row.source for row in found].count("b") == 1
    assert numbers(found) == sorted(numbers(found))
    assert numbers(after(tmp_path, rows, CapSources(most=3, seed=1))[0]) != numbers(
        after(tmp_path, rows, CapSources(most=3))[0]
    )


def test_balanced_lengths_leave_nothing_to_the_rule_that_longer_is_better(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Question {n}?",
            "chosen": "a" * int(random.integers(2, 40)),
            "rejected": "b" * int(random.integers(1, 20)),
        }
        for n in range(200)
    ]
    found, lines = after(tmp_path, rows, BalanceLengths(bins=4))
    signs = [np.sign(length_gap(row, "")) for row in found]
    assert signs.count(1) == signs.count(-1) > 0
    equal = sum(len(row["chosen"]) == len(row["rejected"]) for row in rows)
    assert signs.count(0) == equal
    assert "200 rows ->" in lines[0]


def test_prompts_are_contrasted_where_a_response_fits_one_better(tmp_path):
    def variant(prompt, satisfied, group="g", response="A haiku in French."):
        return {
            "prompt": prompt,
            "completion": response,
            "label": True,
            "satisfied": satisfied,
            "group": group,
        }

    rows = [
        variant("Write a haiku.", 1.0),
        variant("Write a haiku in German.", 0.5),
        variant("Write a sonnet in German.", 0.0),
        variant("Write a haiku in French.", 1.0),
        variant("Write a haiku in German.", 0.5, group="h"),  # of another group
        variant("Write a haiku.", 0.0, response="No."),  # another response
    ]
    found, lines = after(tmp_path, rows, PromptContrast())
    prompts = [row.prompt[0].content for row in found]
    others = [ContrastPrompt()(found, place).prompt[0].content for place in range(len(found))]
    pairs = list(zip(prompts, others, strict=True))
    worse = ["Write a haiku in German.", "Write a sonnet in German."]
    assert pairs == [
        *[("Write a haiku.", one) for one in worse],
        ("Write a haiku in German.", "Write a sonnet in German."),
        *[("Write a haiku in French.", one) for one in worse],
    ]
    assert lines[0].endswith("6 rows -> 5, 3 removed, 3 changed")


@pytest.mark.parametrize("contexts", [("c1", "c2"), ("c1", None), (None, "c2"), ("c", "c")], ids=str)
def test_contrasted_prompts_keep_their_own_contexts_when_written_and_read(tmp_path, contexts):
    rows = [
        {"prompt": f"p{place}", "responses": ["a"], "satisfied": [1.0 - place], "group": "g", "context": one}
        for place, one in enumerate(contexts)
    ]
    (row,), _ = after(tmp_path, rows, PromptContrast())
    read = to_row(json.loads(json.dumps(as_fields(row))))
    asked = ["\n\n".join(filter(None, (f"p{place}", one))) for place, one in enumerate(contexts)]
    for one in (row, read):
        other = json.loads(one.columns["prompt_rejected"])
        assert [one.prompt[-1].content, other[-1]["content"]] == asked


@pytest.mark.parametrize(
    ("kind", "settings", "others"),
    [
        (SoftLabels, {"temperature": 1.0}, ["prompt_rejected"]),
        (SmoothWeak, {"alpha": 0.1}, ["prompt_rejected"]),
        (BestAgainstEach, {}, ["prompt_rejected", "weight"]),
        (PromptContrast, {}, ["weight"]),
    ],
)
def test_a_column_that_is_added_is_no_part_of_the_row_itself(kind, settings, others):
    for name in ("chosen", "prompt", "scores", "responses", "label", "context", "source", "answers", *others):
        with pytest.raises(ConfigError, match=f"`into` of {kind.__name__} .* extra column, got '{name}'"):
            kind(**settings, into=name)
    assert kind(**settings, into="mine").into == "mine"


def test_rows_that_occur_twice_or_elsewhere_are_removed(tmp_path):
    rows = [pair(0), pair(1), pair(0) | {"prompt": " question  0?"}, pair(2)]
    assert numbers(after(tmp_path, rows, RemoveDuplicates())[0]) == [0, 1, 2]
    test = [pair(9) | {"prompt": "QUESTION 1?"}]
    found, lines = after(tmp_path, rows, RemoveLeakage(), held_out=test)
    assert [row.prompt[0].content for row in found] == ["Question 0?", " question  0?", "Question 2?"]
    assert "1 removed" in lines[0]
    assert len(after(tmp_path, rows, RemoveLeakage(by="row"), held_out=test)[0]) == 4
    with pytest.raises(ConfigError, match=r"needs rows to compare with: set `data\.val`"):
        after(tmp_path, rows, RemoveLeakage())


def test_near_duplicates_are_those_whose_n_grams_overlap(tmp_path):
    pytest.importorskip("datasketch", reason="`pip install 'pl-prefopt[dedup]'`")
    words = [f"word{number}" for number in range(40)]
    prompts = {
        "Question 0? " + " ".join(words): "first",
        "Question 0? " + " ".join([*words[:39], "end"]): "3 of 43 different",  # 39 / 41 of the 3-grams
        "Question 0? " + " ".join(words[:20] + words[:20]): "half of it again",
        "Question 0? " + " ".join(words[::-1]): "other order",
    }
    rows = [pair(0) | {"prompt": prompt, "chosen": note} for prompt, note in prompts.items()]
    found, _ = after(tmp_path, rows, RemoveNearDuplicates(by="prompt", threshold=0.8))
    assert [texts(row)[0] for row in found] == ["first", "half of it again", "other order"]
    # 39 / 41 = 0.951
    assert len(after(tmp_path, rows, RemoveNearDuplicates(by="prompt", threshold=0.96))[0]) == 4
    leaking = RemoveLeakage(threshold=0.8)
    assert len(after(tmp_path, rows[1:], leaking, held_out=rows[:1])[0]) == 2


def test_without_datasketch_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"pip install 'pl-prefopt\[dedup\]'"):
        RemoveNearDuplicates()


def test_a_transform_of_pairs_says_what_comes_first(tmp_path):
    with pytest.raises(
        DataError, match=r"got 4 with the scores .* in rows in memory, row 1: make pairs first"
    ):
        after(tmp_path, [RANKED], FlipWeak(below=0))


def test_what_comes_out_can_be_written_and_read(tmp_path):
    rows, _ = after(tmp_path, [RANKED, ten_models()], AllPairs(weigh=True))
    for row in rows:
        read = to_row(json.loads(json.dumps(as_fields(row))))
        assert (read.responses, read.scores, read.columns) == (row.responses, row.scores, row.columns)


@dataclass(frozen=True)
class Counted(RowTransform):
    """Keeps the first rows, and counts how often it runs."""

    first: int = 2
    runs = 0

    def apply(self, rows, held_out):
        type(self).runs += 1
        return ((number, None) for number in range(self.first))


def test_what_a_transform_made_is_cached_by_its_settings(tmp_path):
    cache, store = stored(tmp_path, [pair(n) for n in range(5)])
    Counted.runs = 0
    for transforms, length, runs in (
        ([Counted()], 2, 1),
        ([Counted()], 2, 1),
        ([Counted(first=3)], 3, 2),
        ([Counted(first=3), Counted()], 2, 3),
        ([RemoveDuplicates(), Counted()], 2, 4),
    ):
        found = transform_rows(cache, store, transforms)
        assert (len(found.store.rows), Counted.runs) == (length, runs)
    found = transform_rows(cache, store, [Counted()], numbers=np.array([4, 2, 0]))
    assert found.parents.tolist() == [4, 2]
    assert numbers(found.store.rows) == [4, 2]


def test_only_training_rows_are_transformed(tmp_path, capsys):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [pair(n) for n in range(8)] + [pair(n) | {"chosen": "Another"} for n in range(8)]
    data = PreferenceDataModule(
        train=write_jsonl(tmp_path / "rows.jsonl", rows),
        held_out=4,
        tokenizer=str(tmp_path / "tokenizer"),
        cache_dir=str(tmp_path / "cache"),
        transforms=[RemoveDuplicates(by="prompt"), RemoveLeakage()],
    )
    data.setup("fit")
    train, val = (numbers(data.datasets[split].rows) for split in ("train", "val"))
    assert len(val) == 4
    assert sorted({*train, *val}) == list(range(8))
    assert len(train) == 6
    printed = capsys.readouterr().out
    assert "RemoveDuplicates(by='prompt'): 12 rows -> 6, 6 removed, 0 changed" in printed
    assert "RemoveLeakage(by='prompt', threshold=None, words=3): 6 rows -> 6, 0 removed" in printed

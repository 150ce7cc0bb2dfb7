"""Pairs and shares are those that the metrics count."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pl_prefopt.metrics import BootstrapIntervals, PreferenceAccuracy
from pl_prefopt.report.disagreements import worst_disagreements
from pl_prefopt.report.figures import accuracy_by_gap, accuracy_by_source, calibration, margin_against_gap
from pl_prefopt.report.pairs import estimate, find_pairs, places_in, quantile_edges
from pl_prefopt.report.predictions import read_predictions
from pl_prefopt.report.runs import read_runs
from pl_prefopt.report.subjects import make_subjects
from tests.metrics.inputs import inputs, read_by
from tests.report.folders import pair_rows, ranked_rows, unpaired_rows, write_run


def subjects_of(tmp_path, *rows):
    folders = [write_run(tmp_path / f"run{number}", some) for number, some in enumerate(rows)]
    return make_subjects(read_runs(folders), "test")


def tensors(rows):
    """The rows' rewards and scores, padded."""
    widest = max(len(row["responses"]) for row in rows)

    def padded(key):
        return [
            [r[key] for r in row["responses"]] + [float("nan")] * (widest - len(row["responses"]))
            for row in rows
        ]

    reward, scores = torch.tensor(padded("reward")), torch.tensor(padded("score"))
    return inputs(reward.nan_to_num(), scores, present=~scores.isnan())


def test_accuracy_and_interval_are_those_of_the_metrics(tmp_path):
    rows = ranked_rows()
    (subject,) = subjects_of(tmp_path, rows)
    found = estimate(subject.pairs.right, subject.pairs.prompt)
    given = tensors(rows)
    accuracy, intervals = PreferenceAccuracy(), BootstrapIntervals()
    accuracy.update(given["reward"], given["scores"], given["present"])
    intervals.update(**read_by(intervals, given))
    ends = intervals.compute()
    measured = [accuracy.compute(), ends["accuracy_low"], ends["accuracy_high"]]
    assert list(found[:3]) == pytest.approx([float(value) for value in measured], abs=1e-6)
    assert found.pairs == len(subject.pairs)


def test_a_single_prompt_has_no_interval():
    found = estimate(np.array([1.0, 0.0]), np.array([3, 3]))
    assert (found.value, found.pairs) == (0.5, 2)
    assert np.isnan([found.low, found.high]).all()


def test_draws_are_half_right_and_infinite_rewards_are_counted(tmp_path):
    rows = pair_rows(prompts=3)
    for row, (first, second) in zip(rows, [(0.5, 0.5), (2.0, 1.0), (float("inf"), 1.0)], strict=True):
        row["responses"][0]["reward"], row["responses"][1]["reward"] = first, second
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pairs = find_pairs(read_predictions(path))
    assert pairs.right.tolist() == [0.5, 1.0]
    assert pairs.left_out == 1
    assert not pairs.graded.any()


def test_bins_hold_about_as_many_values_each():
    values = np.arange(100.0)
    edges = quantile_edges(values, 4)
    assert np.bincount(places_in(edges, values)).tolist() == [25, 25, 25, 25]
    assert len(quantile_edges(values[:30], 4)) == 2  # too few for more than one bin
    assert set(places_in(quantile_edges(np.zeros(100), 4), np.zeros(100)).tolist()) == {0}


def test_calibration_finds_what_the_margins_were_drawn_from(tmp_path):
    # 400 pairs with margin ±log 3: a policy that claims 75 % and is right 75 % of the time is calibrated.
    rows = pair_rows(prompts=400)
    for number, row in enumerate(rows):
        sign = -1 if number % 4 == 0 else 1
        row["responses"][0]["reward"], row["responses"][1]["reward"] = sign * np.log(3), 0.0
    overconfident = [json.loads(json.dumps(row)) for row in rows]
    for row in overconfident:
        row["responses"][0]["reward"] *= 10
    panel = calibration(subjects_of(tmp_path, rows, overconfident))
    first, second = panel.figure.data[:2]
    assert (first.x.tolist(), first.y.tolist()) == (pytest.approx([0.75]), [0.75])
    assert "error 0.0 points" in first.name
    assert "error 25.0 points" in second.name


def test_accuracy_by_source_and_gap_add_up_to_accuracy(tmp_path):
    subjects = subjects_of(tmp_path, ranked_rows())
    pairs = subjects[0].pairs
    (by_source,) = accuracy_by_source(subjects).figure.data
    assert set(by_source.y) == {"forum", "school", "&lt;i&gt;lab&lt;/i&gt;"}
    for trace, values in ((by_source, by_source.x), (accuracy_by_gap(subjects).figure.data[0], None)):
        values = trace.y if values is None else values
        counts = [int(text.split(", ")[1].split()[0].replace(",", "")) for text in trace.customdata]
        assert np.average(values, weights=counts) == pytest.approx(pairs.right.mean())
        assert sum(counts) == len(pairs)


def test_rows_without_grades_or_pairs_say_so(tmp_path):
    pairs, single = (
        subjects_of(tmp_path / name, rows())
        for name, rows in (("pairs", pair_rows), ("single", unpaired_rows))
    )
    assert "bare order" in accuracy_by_gap(pairs).note
    assert "column “source”" in accuracy_by_source(pairs).note
    assert margin_against_gap(pairs).figure is None
    assert calibration(pairs).figure is not None
    assert "two responses" in calibration(single).note


def test_the_worst_pair_of_each_prompt_comes_first(tmp_path):
    rows = ranked_rows(prompts=12)
    subjects = subjects_of(tmp_path, rows, ranked_rows(prompts=12, skill=50))
    found = worst_disagreements(subjects)
    margins = [item.margin for item in found]
    assert margins == sorted(margins)
    assert margins[0] == min(subjects[0].pairs.margin)
    assert len({item.origin for item in found}) == len(found)
    # The second run gets nearly all right, and is asked about the same pairs.
    assert {(item.wrong_in, item.judged_by) for item in found} == {(1, 2)}
    assert all(item.sides[0].response.score > item.sides[1].response.score for item in found)


def test_single_responses_disagree_on_the_wrong_side_of_the_median(tmp_path):
    rows = unpaired_rows(prompts=4)
    for row, reward in zip(rows, (5.0, -3.0, 0.0, 1.0), strict=True):  # verdicts: bad, good, bad, good
        row["responses"][0]["reward"] = reward
    found = worst_disagreements(subjects_of(tmp_path, rows))
    assert [(item.sides[0].verdict, item.margin) for item in found] == [
        ("undesirable", -4.5),
        ("desirable", -3.5),
    ]


def test_ties_unknown_scores_and_order_are_those_of_one_pair_after_the_other(tmp_path):
    rows = ranked_rows(prompts=40) + pair_rows(prompts=3) + unpaired_rows(prompts=2)
    for row in rows[:20]:
        row["responses"][0]["score"] = row["responses"][-1]["score"]
    for row in rows[40:]:
        row["responses"][0]["score"] = None
    # Apart in float64, equal in a batch: no pair, as in a loss or a metric.
    for number, score in enumerate((7.0, 7.0 + 1e-9)):
        rows[30]["responses"][number]["score"] = score
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    predictions = read_predictions(path)
    expected = []
    for number, prediction in enumerate(predictions):
        for i, one in enumerate(prediction.responses):
            for j, other in enumerate(prediction.responses):
                known = one.score is not None and other.score is not None
                if known and np.float32(one.score) > np.float32(other.score):
                    gap = one.score - other.score
                    expected.append((number, i, j, one.reward - other.reward, gap, prediction.graded))
    pairs = find_pairs(predictions)
    columns = (pairs.prompt, pairs.better, pairs.worse, pairs.margin, pairs.gap, pairs.graded)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert not ((pairs.prompt == 30) & (pairs.better + pairs.worse == 1)).any()
    assert len(find_pairs([])) == 0

"""Differences between runs on their common prompts, and what is shown per objective."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest

from pl_prefopt.evaluations import Evaluation, Facts, add_evaluation, write_facts
from pl_prefopt.report import build_report, read_runs
from pl_prefopt.report.differences import differences
from pl_prefopt.report.subjects import judge_alike, make_subjects
from tests.report.folders import pair_rows, ranked_rows, write_run

SIMPO = {"class_path": "pl_prefopt.objectives.SimPO", "init_args": {"beta": 2.0}}
DPO = {"class_path": "pl_prefopt.objectives.DPO", "init_args": {"beta": 0.5}}


def subjects_of(*folders):
    return make_subjects(read_runs(folders), "test")


def changed(rows, change):
    rows = copy.deepcopy(rows)
    for row in rows:
        for response in row["responses"]:
            change(response)
    return rows


def by_hand(first, second, resamples=4000):
    """The difference of accuracies of pairs of prompts with two responses, and its interval over prompts."""

    def right(row):
        good, bad = sorted(row["responses"], key=lambda one: -one["score"])
        return float(good["reward"] > bad["reward"])

    gaps = np.array([right(one) - right(other) for one, other in zip(first, second, strict=True)])
    drawn = np.random.default_rng(1).choice(gaps, size=(resamples, len(gaps))).mean(axis=1)
    return gaps.mean(), *np.quantile(drawn, [0.025, 0.975])


def test_a_difference_is_paired_and_knows_prompts_by_their_texts(tmp_path):
    rows = pair_rows(prompts=40)
    other = changed(rows, lambda one: one.update(reward=one["reward"] + 2 * one["score"], log_prob=None))
    for row in other:
        row["responses"].reverse()
    alone = {**rows[0], "prompt": [{"role": "user", "content": "Only here?"}]}
    folders = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", [*reversed(other), alone])
    (found,) = differences(subjects_of(*folders))
    assert (found.run.run.name, found.baseline.run.name, found.prompts, found.left_out) == ("b", "a", 40, 1)
    value, low, high = by_hand(other, rows)
    accuracy = found.estimates["accuracy"]
    assert accuracy.value == pytest.approx(value)
    assert (accuracy.low, accuracy.high) == pytest.approx((low, high), abs=0.03)
    margin = found.estimates["margin"]  # a constant shift: the pairing leaves no variation
    assert margin[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert found.estimates["ranking_accuracy"] is None, "one run has no log-probs"


def test_pairs_without_a_margin_in_one_run_are_left_out_of_both(tmp_path):
    rows = pair_rows(prompts=12)
    other = copy.deepcopy(rows)
    other[3]["responses"][0]["reward"] = float("nan")
    (found,) = differences(subjects_of(write_run(tmp_path / "a", rows), write_run(tmp_path / "b", other)))
    assert found.prompts == 11
    assert found.estimates["accuracy"].value == 0


def test_runs_without_common_prompts_have_no_difference(tmp_path):
    rescored = changed(pair_rows(), lambda one: one.update(score=1 - one["score"]))
    subjects = subjects_of(write_run(tmp_path / "a", pair_rows()), write_run(tmp_path / "b", rescored))
    (found,) = differences(subjects)
    assert (found.prompts, found.left_out, set(found.estimates.values())) == (0, 40, {None})
    assert not judge_alike(subjects), "the same texts with other scores are another test"
    page = build_report([one.run for one in subjects]).html
    assert "They have no pairs of the same prompts in common." in page


def test_many_runs_are_compared_with_the_first(tmp_path):
    subjects = subjects_of(*(write_run(tmp_path / name, pair_rows()) for name in "abcde"))
    assert [(one.run.run.name, one.baseline.run.name) for one in differences(subjects)] == [
        (name, "a") for name in "bcde"
    ]
    assert len(differences(subjects[:3])) == 3


def test_losses_and_rewards_of_different_objectives_share_no_axis(tmp_path):
    def page_of(*names):
        page = build_report(read_runs([tmp_path / name for name in names])).html
        (block,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
        return page, {key: [one["name"] for one in found["data"]] for key, found in json.loads(block).items()}

    write_run(tmp_path / "a", ranked_rows())
    write_run(tmp_path / "b", ranked_rows(), model={"init_args": {"objective": DPO}})
    write_run(tmp_path / "c", ranked_rows(), model={"init_args": {"objective": SIMPO}})
    page, traces = page_of("a", "b")
    assert traces["curve_loss"] == ["a", "b"]
    warned = {
        one.key
        for one in build_report(read_runs([tmp_path / name for name in "ab"])).panels
        if "compare the shapes" in one.how
    }
    assert warned == {"curve_loss", "curve_margin", "margin_gap", "margins", "reward_length"}
    assert "<dt>margin" not in page, "β differs"
    assert "<dt>margin" in page_of("a")[0]
    page, traces = page_of("a", "b", "c")
    assert (traces["curve_loss_1"], traces["curve_loss_2"]) == (["a", "b"], ["c"])
    assert {"margins_1", "margin_gap_2", "reward_length_2", "curve_margin_2"} <= traces.keys()
    assert not {"margins", "curve_loss", "margin_gap"} & traces.keys()
    assert traces["curve_accuracy"][0] == "a"
    assert "<dt>margin" not in page, "the tile"
    assert "the objectives or their settings differ" in page


def test_a_larger_beta_is_not_a_better_margin(tmp_path):
    """The same policy with five times the beta has five times the margins."""
    rows = ranked_rows()
    scaled = changed(rows, lambda one: one.update(reward=5 * one["reward"]))
    a = write_run(tmp_path / "a", rows)
    b = write_run(tmp_path / "b", scaled, model={"init_args": {"objective": DPO}})
    (found,) = differences(subjects_of(a, b))
    assert found.estimates["margin"] is None
    assert found.estimates["accuracy"].value == 0


@pytest.mark.parametrize("rows", [{"train": {"rows": 90}}, {"train": 90}, ["train"], None])
def test_counts_of_another_version_leave_out_their_checks_only(tmp_path, rows):
    facts = {"started": "2026-01-31T12:00:00+00:00", "seconds": 754.2, "steps": 40, "precision": "32-true"}
    folder = write_run(tmp_path / "a", ranked_rows())
    (folder / "run.json").write_text(json.dumps({**facts, "hardware": "GPU", "rows": rows}))
    page = build_report(read_runs([folder])).html
    assert "not recorded" in page
    assert "Unused rows" not in page


def test_the_page_is_in_order_and_has_its_header_and_generations(tmp_path):
    folders = [write_run(tmp_path / name, ranked_rows()) for name in "ab"]
    counts = {"rows": 90, "responses": 200, "skipped": 10, "unused": 5}
    counts |= {"truncated_prompts": 1, "truncated_responses": 2}
    facts = {"started": "2026-01-31T12:00:00+00:00", "seconds": 754.2, "steps": 40, "precision": "32-true"}
    started = Facts(**facts, hardware="2 × GPU", rows={"train": counts}, first_step=30)
    write_facts(folders[0] / "run.json", started)
    same = {"data": "val.jsonl", "fingerprint": "x", "method": "DPO", "rows": 9}
    moved = {"val/accuracy": 0.7, "val/log_ratio_margin_0": 0.5, "val/log_ratio_0": -2.0}
    for command, step, metrics in (("fit", 40, moved), ("validate", 0, {"val/accuracy": 0.425})):
        evaluation = Evaluation(metrics=metrics, command=command, step=step, **same)
        add_evaluation(folders[0] / "metrics.json", evaluation)
    for folder in folders:
        text = f'step,prompt,before,now\n9,Q?,Start,Old\n10,Q?,Start,"<b>{folder.name}</b> now"\n11,Cut?,Sta'
        (folder / "generations.csv").write_text(text)
    page = build_report(read_runs(folders)).html
    sections = ("runs", "health", "differences", "numbers", "generations", "settings", "curves", "rewards")
    places = [page.index(f'<section id="{name}"') for name in sections]
    assert places == sorted(places)
    for told in (
        "train.jsonl, 90 rows",
        "2026-01-31 12:00 UTC",
        "12 min 34 s",
        "2 × GPU, 32-true",
        "10, from step 30 on",
    ):
        assert f"<dd>{told}</dd>" in page
    checks = {name: colour for colour, name in re.findall(r'check (\w+)"><a href="#\w+">. ([^<]*)</a>', page)}
    assert checks["Margin against KL"] == "red"
    assert checks["Unused rows"] == "red"
    assert checks["Truncation"] == "amber"
    assert "10 of 100 training rows unreadable, 5 without a comparison" in page
    before = page[page.index('<tr class="before">') :]
    assert "42.5 %" in before[: before.index("</tr>")]
    assert page.count("before training</p>") == 1, "both runs start from the same answers"
    assert "&lt;b&gt;a&lt;/b&gt; now" in page
    assert "Old" not in page
    assert "Scores and lengths of the data itself: r = " in page

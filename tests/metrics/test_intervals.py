"""Bootstrap intervals against resampling by hand, and metrics of second views and single references."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import torch

from pl_prefopt.metrics import METRIC_HELP, BootstrapIntervals, bootstrap, build_suite, intervals
from tests.metrics.inputs import inputs, join, random_inputs, read_by

CORRELATIONS = {
    "pearson": (bootstrap.weighted_pearson, scipy.stats.pearsonr),
    "spearman": (lambda a, b, w: bootstrap.RankCorrelations(a, b).spearman(w), scipy.stats.spearmanr),
    "kendall": (lambda a, b, w: bootstrap.RankCorrelations(a, b).kendall(w), scipy.stats.kendalltau),
}


def scored(count, *, responses=3, seed=0, slope=0.3, grades=11):
    """Rows whose rewards follow their scores, with noise."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, grades, (count, responses), generator=generator).float()
    return inputs(slope * scores + torch.randn(scores.shape, generator=generator), scores)


def read(*batches, **settings):
    metric = BootstrapIntervals(**settings)
    for batch in batches:
        metric.update(**read_by(metric, batch))
    return {name: value.item() for name, value in metric.compute().items()}


# --- the resamples


def test_a_resample_in_which_one_side_is_constant_has_no_correlation():
    first, second = np.array([0.1, 0.1, 0.1, 5.0]), np.array([1.3, 2.7, 0.4, 8.0])
    weights = np.array([[1, 1, 1, 0], [2, 2, 3, 0], [3, 1, 2, 1]])
    for correlate, _ in CORRELATIONS.values():
        for found in (correlate(first, second, weights), correlate(second, first, weights)):
            assert np.isnan(found).tolist() == [True, True, False]


def test_a_resample_draws_as_many_prompts_as_there_are_with_all_their_pairs():
    prompts = np.array([0, 0, 0, 1, 2, 2, 3])
    weights = np.concatenate(list(bootstrap.resampled_weights(prompts, resamples=500, seed=0)))
    assert weights.shape == (500, 7)
    assert (weights[:, [0, 1, 4]] == weights[:, [1, 2, 5]]).all()
    assert (weights[:, [0, 3, 4, 6]].sum(axis=1) == 4).all()
    assert weights.mean(axis=0) == pytest.approx(1.0, abs=0.15)


def test_resamples_do_not_depend_on_the_size_of_the_pieces(monkeypatch):
    prompts = np.arange(10)
    whole = list(bootstrap.resampled_weights(prompts, resamples=50, seed=3))
    monkeypatch.setattr(bootstrap, "_CELLS", 70)
    pieces = list(bootstrap.resampled_weights(prompts, resamples=50, seed=3))
    assert (len(whole), len(pieces)) == (1, 8)
    assert (np.concatenate(pieces) == whole[0]).all()


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("ties", [(), (0,), (1,), (0, 1)])
def test_weighted_correlations_are_those_of_the_repeated_pairs(name, ties):
    generator = np.random.default_rng(0)
    for count in (2, 3, 40):
        values = generator.normal(size=(2, count))
        for side in ties:
            values[side] = values[side].round()
        if (np.ptp(values, axis=1) == 0).any():
            continue
        weights = generator.integers(0, 4, size=(6, count))
        weights[:, 0] += 1
        ours, theirs = CORRELATIONS[name]
        found = ours(*values, weights)
        for row, value in zip(weights, found, strict=True):
            drawn = np.repeat(values, row, axis=1)
            constant = drawn.shape[1] < 2 or (np.ptp(drawn, axis=1) == 0).any()
            expected = np.nan if constant else theirs(*drawn)[0]
            assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_weighted_means_are_those_of_the_repeated_pairs():
    values, weights = np.array([1.0, 5.0, -2.0]), np.array([[1, 1, 1], [0, 2, 1]])
    assert bootstrap.weighted_mean(values, weights).tolist() == pytest.approx([4 / 3, 8 / 3])


# --- the intervals


def test_intervals_against_resampling_one_by_one():
    batch = join(random_inputs(0, prompts=12), random_inputs(1, prompts=9))
    ours = read(batch, num_references=1, resamples=200, seed=5)
    resampled = {name: [] for name in ("accuracy", "margin", "pearson")}
    rows = [_pairs(batch, row) for row in range(len(batch["scores"]))]
    rows = [row for row in rows if row]
    generator = np.random.default_rng(5)
    for drawn in generator.integers(0, len(rows), size=(200, len(rows))):
        pairs = np.array([pair for row in drawn for pair in rows[row]])
        resampled["accuracy"].append(((np.sign(pairs[:, 0]) + 1) / 2).mean())
        resampled["margin"].append(pairs[:, 0].mean())
        graded = pairs[pairs[:, 2] > 0]
        resampled["pearson"].append(scipy.stats.pearsonr(graded[:, 0], graded[:, 1])[0])
    for name, values in resampled.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert ours[f"{name}_low"] == pytest.approx(low, abs=1e-5)
        assert ours[f"{name}_high"] == pytest.approx(high, abs=1e-5)


def _pairs(batch, row):
    """(margin, difference, graded) of each pair of a row."""
    reward, scores, present = (batch[name][row].tolist() for name in ("reward", "scores", "present"))
    here = [place for place in range(len(present)) if present[place]]
    ordered = [(i, j) for i in here for j in here if scores[i] > scores[j]]
    return [(reward[i] - reward[j], scores[i] - scores[j], float(batch["graded"][row])) for i, j in ordered]


def test_values_lie_within_their_intervals():
    batch = scored(60)
    suite = build_suite("test", 0)
    suite.update(**batch)
    values = {name.removeprefix("test/"): value.item() for name, value in suite.compute().items()}
    for name in ("accuracy", "margin", "pearson", "spearman", "kendall"):
        assert values[f"{name}_low"] < values[name] < values[f"{name}_high"]
    assert json.dumps(values)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # The truth is the value on very many rows of the same kind.
    truth = build_suite("val", 0)
    truth.update(**scored(4000, seed=99))
    expected = {name: value.item() for name, value in truth.compute().items()}
    ends = [read(scored(60, seed=seed), resamples=100) for seed in range(50)]
    for name in ("accuracy", "margin", "pearson", "kendall"):
        covered = [end[f"{name}_low"] <= expected[f"val/{name}"] <= end[f"{name}_high"] for end in ends]
        assert 0.82 <= np.mean(covered) <= 1.0


def test_more_prompts_give_narrower_intervals_and_more_pairs_of_one_prompt_do_not():
    narrow, wide = (read(scored(count)) for count in (400, 25))
    assert narrow["margin_high"] - narrow["margin_low"] < 0.5 * (wide["margin_high"] - wide["margin_low"])
    one_prompt = read(scored(1, responses=8))
    assert all(np.isnan(value) for value in one_prompt.values())


def test_the_same_rows_give_the_same_intervals_whatever_the_batches():
    parts = [random_inputs(seed, prompts=4 + seed) for seed in range(3)]
    assert read(*parts) == read(join(*parts)) == read(join(*parts))
    assert read(*parts) != read(*parts, seed=1)


def test_draws_count_one_half_and_constant_margins_correlate_with_nothing():
    ends = read(inputs(torch.zeros(5, 2), [[float(n), 0.0] for n in range(1, 6)]))
    assert (ends["accuracy_low"], ends["accuracy_high"]) == (0.5, 0.5)
    assert all(np.isnan(ends[f"{name}_low"]) for name in CORRELATIONS)


def test_bare_orders_have_no_correlation():
    batch = scored(20)
    batch["graded"] = torch.zeros(20, dtype=torch.bool)
    ends = read(batch)
    assert np.isnan(ends["kendall_high"])
    assert np.isfinite(ends["margin_high"])


def test_pairs_are_sorted_once_and_long_ones_report_progress(monkeypatch):
    lines, sorts, argsort = [], [], np.argsort
    monkeypatch.setattr(intervals, "rank_zero_info", lines.append)
    monkeypatch.setattr(intervals, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(bootstrap, "_CELLS", 600)
    monkeypatch.setattr(
        np, "argsort", lambda *values, **options: sorts.append(1) or argsort(*values, **options)
    )
    read(scored(20), resamples=40)
    few = len(sorts)
    read(scored(20), resamples=80)
    assert len(sorts) == 2 * few
    assert lines[0].startswith("intervals of ")
    assert lines[-1].endswith("80 of 80 resamples, about 0 minutes left")


# --- log-ratio margins and views


def test_log_ratio_margins_and_views_by_hand():
    # Row 0: log-ratios to reference 0 are 2 and −1, to reference 1 −1 and 1; row 1: 0 and 1, 3 and 1.
    batch = inputs(
        [[0.2, -0.1], [0.0, 0.1]],
        [[1.0, 0.0], [1.0, 0.0]],
        policy=[[-8.0, -11.0], [-5.0, -6.0]],
        references=[[[-10.0, -10.0], [-5.0, -7.0]], [[-7.0, -12.0], [-8.0, -7.0]]],
    )
    batch["view_rewards"] = {"quality": torch.tensor([[0.5, 0.0], [0.0, -1.5]])}
    suite = build_suite("test", 2, ["quality"])
    suite.update(**batch)
    values = {name.removeprefix("test/"): value.item() for name, value in suite.compute().items()}
    assert values["log_ratio_margin_0"] == pytest.approx((3 - 1) / 2)
    assert values["log_ratio_margin_1"] == pytest.approx((-2 + 2) / 2)
    assert values["accuracy_quality"] == 1.0
    assert values["margin_quality"] == pytest.approx((0.5 + 1.5) / 2)
    for name in ("log_ratio_margin_0", "log_ratio_margin_1", "accuracy_quality", "margin_quality"):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]


def test_views_are_watched_in_training_too():
    names = set(build_suite("train", 0, ["quality"]))
    assert {"train/accuracy_quality", "train/margin_quality"} <= names


def test_intervals_are_for_tests_only_and_cover_what_the_page_says():
    assert not any("intervals" in name for name in build_suite("val", 1, ["quality"]))
    suite = build_suite("test", 1, ["quality"])
    batch = random_inputs(0)
    suite.update(**batch, view_rewards={"quality": batch["reward"]})
    names = {name.removeprefix("test/") for name in suite.compute()}
    ends = {name.removesuffix("_low") for name in names if name.endswith("_low")}
    assert {f"{name}_high" for name in ends} == {name for name in names if name.endswith("_high")}
    assert ends == {
        *("accuracy", "margin", "pearson", "spearman", "kendall"),
        *("log_ratio_margin_0", "accuracy_quality", "margin_quality"),
    }
    assert ends <= names
    assert {"X_low", "X_high"} <= set(METRIC_HELP)

"""Each metric against values worked by hand, and what all of them promise."""

from __future__ import annotations

import inspect
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torchmetrics import Metric

from pl_prefopt import metrics
from pl_prefopt.errors import ContractError
from pl_prefopt.metrics import (
    INPUTS,
    METRIC_HELP,
    REGISTRY,
    BootstrapIntervals,
    build_suite,
    find_info,
)
from pl_prefopt.metrics.states import keep
from pl_prefopt.types import ResponseLogProbs
from tests.metrics.inputs import inputs, join, random_inputs
from tests.objectives.batches import NAN

STAGE = "val/"
PATTERNS = {info.label for info in REGISTRY if info.label != info.name} | {"X_low", "X_high"}


def documented(num_references):
    """The names of a validation with so many references and no second view."""
    numbered = {f"{name}_{k}" for name in ("log_ratio", "log_ratio_margin") for k in range(num_references)}
    return METRIC_HELP.keys() - PATTERNS | numbered


def read(*batches, num_references=0, stage="val"):
    """The suite's values after these batches, by name without the stage."""
    suite = build_suite(stage, num_references)
    for batch in batches:
        suite.update(**batch)
    return {name.removeprefix(f"{stage}/"): value.item() for name, value in suite.compute().items()}


# --- by hand


def test_pairs_by_hand():
    # Row 0: scores 3 > 2 > 1, rewards 1, 4, 0: margins −3 (0,1), 1 (0,2), 4 (1,2): 2 of 3 right.
    # Row 1: one pair with margin 0, a draw. Row 2: tied scores, nothing. 2.5 of 4.
    values = read(
        inputs(
            [[1.0, 4.0, 0.0], [2.0, 2.0, 0.0], [5.0, 7.0, 0.0]],
            [[3.0, 2.0, 1.0], [1.0, 0.0, NAN], [1.0, 1.0, NAN]],
            policy=[[-1.0, -2.0, -4.0], [-8.0, -9.0, 0.0], [-1.0, -1.0, 0.0]],
        )
    )
    assert values["accuracy"] == pytest.approx(2.5 / 4)
    assert values["margin"] == pytest.approx((-3 + 1 + 4 + 0) / 4)
    assert values["chosen_reward"] == pytest.approx((1 + 1 + 4 + 2) / 4)
    assert values["rejected_reward"] == pytest.approx((4 + 0 + 0 + 2) / 4)
    assert values["chosen_logp"] == pytest.approx((-1 - 1 - 2 - 8) / 4)
    assert values["rejected_logp"] == pytest.approx((-2 - 4 - 4 - 9) / 4)


def test_ranking_accuracy_by_hand():
    # Sums: −6 < −4 wrong, −3 > −5 right. Averages: −6/6 > −4/2 right, −3/1 < −5/5 wrong, third a draw
    # of averages (−2/1 = −4/2) and right by sums.
    values = read(
        inputs(
            torch.zeros(3, 2),
            [[1.0, 0.0]] * 3,
            policy=[[-6.0, -4.0], [-3.0, -5.0], [-2.0, -4.0]],
            length=[[6, 2], [1, 5], [1, 2]],
        )
    )
    assert values["ranking_accuracy"] == pytest.approx(2 / 3)
    assert values["ranking_accuracy_normalized"] == pytest.approx(1.5 / 3)
    assert values["accuracy"] == 0.5


def test_an_untrained_policy_reads_chance():
    assert read(inputs(torch.zeros(4, 2), [[1.0, 0.0]] * 4))["accuracy"] == 0.5


def test_kl_by_hand():
    # Against reference 0: (−3 + 5, −4 + 4.5) over the two present; against 1: (−3 + 2, −4 + 3).
    values = read(
        inputs(
            [[0.0, 0.0, 0.0]],
            [[1.0, 0.0, NAN]],
            policy=[[-3.0, -4.0, 99.0]],
            references=[[[-5.0, -4.5, 0.0]], [[-2.0, -3.0, 0.0]]],
            present=[[True, True, False]],
        ),
        num_references=2,
    )
    assert values["log_ratio_0"] == pytest.approx(1.25)
    assert values["log_ratio_1"] == pytest.approx(-1.0)


def test_length_bias_by_hand():
    # Rewards 1, 2, 3 on lengths 2, 4, 6 over two rows: r = 1; the absent response would spoil it.
    values = read(
        inputs(
            [[1.0, 2.0], [3.0, -50.0]],
            [[1.0, 1.0], [1.0, NAN]],
            length=[[2, 4], [6, 0]],
            present=[[True, True], [True, False]],
        )
    )
    assert values["length_bias"] == pytest.approx(1.0)


def test_correlations_by_hand():
    # Pairs winner first: (margin, difference of scores) = (1, 1), (3, 2), (2, 3).
    # Pearson: means 2 and 2, Σ = (−1)(−1) + (1)(0) + (0)(1) = 1, both variances 2: 0.5. The ranks are the
    # values, so Spearman is 0.5 too. Kendall: of 3 pairs 2 agree and 1 does not: 1/3.
    values = read(inputs([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    assert values["pearson"] == pytest.approx(0.5)
    assert values["spearman"] == pytest.approx(0.5, abs=1e-5)  # torchmetrics adds 1e-6 to the denominator
    assert values["kendall"] == pytest.approx(1 / 3)


def test_correlations_read_graded_rows_only():
    graded = inputs([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    bare = inputs([[-9.0, 0.0]], [[1.0, 0.0]], graded=[False])
    assert read(graded, bare)["pearson"] == pytest.approx(0.5)
    assert math.isnan(read(bare)["pearson"])


# --- against SciPy and NumPy on ragged rows with ties and unknown scores


def loop_over_pairs(batch):
    """The same pairs the slow way: (margin, difference) of graded rows, and margins of all rows."""
    graded, margins = [], []
    rows, responses = batch["scores"].shape
    for row in range(rows):
        for i in range(responses):
            for j in range(responses):
                both = batch["present"][row, i] and batch["present"][row, j]
                difference = (batch["scores"][row, i] - batch["scores"][row, j]).item()
                if both and difference > 0:
                    margin = (batch["reward"][row, i] - batch["reward"][row, j]).item()
                    margins.append(margin)
                    if batch["graded"][row]:
                        graded.append((margin, difference))
    return np.array(graded), np.array(margins)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_scipy(seed):
    batch = random_inputs(seed, prompts=12)
    graded, margins = loop_over_pairs(batch)
    assert len(graded) > 5
    assert len(margins) > len(graded)
    values = read(batch, num_references=1)
    assert values["accuracy"] == pytest.approx((margins > 0).mean())
    assert values["margin"] == pytest.approx(margins.mean(), abs=1e-6)
    assert values["pearson"] == pytest.approx(scipy.stats.pearsonr(*graded.T)[0], abs=1e-5)
    assert values["spearman"] == pytest.approx(scipy.stats.spearmanr(*graded.T)[0], abs=1e-5)
    assert values["kendall"] == pytest.approx(scipy.stats.kendalltau(*graded.T)[0], abs=1e-5)
    present = batch["present"]
    rewards, lengths = batch["reward"][present], batch["policy"].length[present]
    assert values["length_bias"] == pytest.approx(np.corrcoef(rewards, lengths)[0, 1], abs=1e-5)
    distance = (batch["policy"].sum - batch["references"][0])[present].mean().item()
    assert values["log_ratio_0"] == pytest.approx(distance, abs=1e-6)


# --- what all promise


def test_batches_add_up_to_the_whole():
    parts = [random_inputs(seed, prompts=prompts) for seed, prompts in ((0, 5), (1, 2), (2, 9))]
    assert read(*parts, num_references=1) == pytest.approx(read(join(*parts), num_references=1), abs=1e-5)


def test_reset_forgets():
    suite = build_suite("val", 1)
    suite.update(**random_inputs(0))
    suite.compute()
    suite.reset()
    suite.update(**random_inputs(1))
    fresh = read(random_inputs(1), num_references=1)
    values = {name.removeprefix(STAGE): value.item() for name, value in suite.compute().items()}
    assert values == pytest.approx(fresh, nan_ok=True)


def test_metrics_that_agree_at_first_do_not_merge():
    # All rewards are 0 in the first batch: chosen, rejected and margin hold equal states then.
    first = inputs(torch.zeros(2, 2), [[1.0, 0.0]] * 2)
    values = read(first, inputs([[3.0, 1.0], [3.0, 1.0]], [[1.0, 0.0]] * 2))
    assert (values["chosen_reward"], values["rejected_reward"], values["margin"]) == (1.5, 0.5, 1.0)


def test_nothing_counted_is_nan_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = read(
            inputs([[1.0, 2.0]], [[1.0, 1.0]], references=[[[0.0, 0.0]]], present=[[False, False]]),
            num_references=1,
        )
        constant = read(inputs([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]))
    assert values.keys() == documented(1)
    assert all(math.isnan(value) for value in values.values())
    for name in ("pearson", "spearman", "kendall", "length_bias"):
        assert math.isnan(constant[name])


def test_two_pairs_agree_or_not():
    batch = inputs([[1.0, 0.0], [3.0, 0.0]], [[2.0, 0.0], [1.0, 0.0]])
    assert read(batch)["kendall"] == read(batch)["pearson"] == -1
    assert read(batch, stage="test")["kendall"] == -1  # also where the bootstrap takes one pair twice


def test_single_pair_has_no_correlation():
    assert math.isnan(read(inputs([[1.0, 0.0]], [[1.0, 0.0]]))["pearson"])


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_a_cast_of_the_module_changes_nothing(cast):
    suite = build_suite("val", 1)
    home = nn.ModuleList([suite])
    suite.update(**random_inputs(0))
    cast(home)
    suite.update(**random_inputs(1))
    suite.set_dtype(torch.float32)
    suite.update(**random_inputs(2))
    expected = read(*(random_inputs(seed) for seed in range(3)), num_references=1)
    values = {name.removeprefix(STAGE): value.item() for name, value in suite.compute().items()}
    assert values == expected
    assert suite["accuracy"].count.dtype == torch.int64
    assert suite["margin"].total.dtype == torch.float32


def test_low_precision_inputs_are_counted_in_float32():
    # 600 pairs with the margin 1: a bfloat16 sum stops at 256.
    batch = inputs(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16).expand(600, 2), [[1.0, 0.0]] * 600)
    suite = build_suite("train", 0)
    for row in range(600):
        suite.update(**{name: _row(value, row) for name, value in batch.items()})
    values = suite.compute()
    assert values["train/margin"].dtype == torch.float32
    assert values["train/margin"].item() == 1.0


def _row(value, row):
    if isinstance(value, ResponseLogProbs):
        return ResponseLogProbs(sum=value.sum[row : row + 1], length=value.length[row : row + 1])
    return value[:, row : row + 1] if value.dim() == 3 else value[row : row + 1]


def test_a_suite_reset_in_inference_mode_still_updates_in_training():
    suite = build_suite("val", 1)
    with torch.inference_mode():
        suite.update(**random_inputs(0))
        suite.compute()
        suite.reset()
    suite.update(**random_inputs(1))
    suite.update(**random_inputs(2))
    assert suite.compute()["val/margin"].isfinite()


# --- the suites and their documentation


def test_train_has_the_cheap_means_only():
    expected = {
        "loss",
        "accuracy",
        "margin",
        "chosen_reward",
        "rejected_reward",
        "chosen_logp",
        "rejected_logp",
    }
    assert set(build_suite("train", 2)) == {f"train/{name}" for name in expected}


@pytest.mark.parametrize("stage", ["val", "test"])
def test_other_stages_have_all_and_one_distance_a_reference(stage):
    names = {name.removeprefix(f"{stage}/") for name in build_suite(stage, 2)}
    assert names - {"intervals"} == documented(2)
    assert ("intervals" in names) == (stage == "test")
    assert not any("log_ratio_" in name for name in build_suite(stage, 0))


def test_every_name_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    names, *_ = page.split("\n## ")
    table = [line for line in names.splitlines() if line.startswith("| `")]
    assert table == [documented_as(info) for info in REGISTRY]


def documented_as(info):
    """The line of the page about metrics."""
    low, high = info.range
    values = f"{low:.0f} to {high:.0f}" if math.isfinite(high) else "any"
    stages = "all stages" if info.logged == "train" else "validation, test"
    better = "" if info.better == "none" else info.better
    kind = getattr(info.build, "func", info.build).__name__
    interval = "yes" if info.interval else ""
    cells = (f"`{info.label}`", info.help, values, better, stages, interval, f"`{kind}`")
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("seed", range(5))
def test_values_lie_within_the_ranges_that_the_registry_names(seed):
    suite = build_suite("test", 1, ["quality"])
    batch = random_inputs(seed, prompts=9)
    suite.update(**batch, view_rewards={"quality": batch["reward"]})
    for name, value in suite.compute().items():
        low, high = find_info(name.removeprefix("test/"), REGISTRY).range
        assert math.isnan(value) or low <= value <= high, name


def test_intervals_are_those_that_the_registry_names():
    measured = set(BootstrapIntervals(num_references=2, views=["quality"]).compute())
    named = {
        f"{name}_{end}"
        for entry in REGISTRY
        if entry.interval
        for name, _ in entry.built(2, ["quality"])
        for end in ("low", "high")
    }
    assert measured == named
    assert find_info("log_ratio_margin_1_low", REGISTRY).label == "log_ratio_margin_k"
    assert set(METRIC_HELP) == {info.label for info in REGISTRY} | {"X_low", "X_high"}


def test_every_public_metric_stands_alone_with_an_example():
    kinds = [one for one in vars(metrics).values() if inspect.isclass(one) and issubclass(one, Metric)]
    for kind in kinds:
        if "update" in vars(kind) and not inspect.isabstract(kind) and kind is not BootstrapIntervals:
            assert ">>> metric.compute()" in kind.__doc__, kind
    for kind in (metrics.GradePearson, metrics.GradeSpearman, metrics.GradeKendall):
        assert ">>> metric.compute()" in kind.__doc__


def test_every_update_asks_for_common_arguments_only():
    common = set(inputs(torch.zeros(1, 1), torch.zeros(1, 1)))
    assert common | {"view_rewards", "columns"} == set(INPUTS)
    for metric in build_suite("val", 1, ["quality"]).values():
        assert isinstance(metric, Metric)
        assert metric.full_state_update is False
        assert set(inspect.signature(metric.update).parameters) <= set(INPUTS)


def test_kept_values_stay_in_order_in_a_few_tensors():
    values: list[torch.Tensor] = []
    for number in range(5000):
        keep(values, torch.arange(number, number + number % 2 + 1))
    expected = [item for number in range(5000) for item in range(number, number + number % 2 + 1)]
    assert torch.cat(values).tolist() == expected
    assert len(values) <= 14  # log2 of 7,500, rounded up, and one


def test_metrics_take_lists_and_arrays():
    scored = {"scores": [[1, 0], [3, 2, 1]]}
    assert metrics.Margin()([[1, 4], [3, 2, 1]], **scored) == 0.25  # (-3 + 1 + 2 + 1) / 4
    absent = {"reward": torch.tensor([[1.0, 4.0, 9.0], [3.0, 2.0, 1.0]])}
    absent |= {"scores": torch.tensor([[1.0, 0.0, 5.0], [3.0, 2.0, 1.0]])}
    assert metrics.Margin()(**absent, present=[[1, 1, 0], [1, 1, 1]]) == 0.25
    assert metrics.PreferenceAccuracy()(np.array([[1.2, 0.3], [0.1, 0.4], [2, 2]])) == 0.5
    assert metrics.GradeKendall()([[3.0, 1.0, 2.0]], scores=[[9, 1, 5]]) == 1.0
    policy = ResponseLogProbs(sum=[[-3.0, -4.0]], length=np.array([[1, 2]]))
    assert metrics.ChosenLogProb()(policy) == -3.0
    assert metrics.NormalizedRankingAccuracy()(policy) == 0.0  # -3 per token against -2
    assert metrics.MeanLogRatio(reference=0)(policy, [[[-5.0, -4.5]]]) == 1.25
    assert metrics.ViewMargin(view="quality")({"quality": [[2.0, 0.5]]}) == 1.5
    assert metrics.LossMean()([0.5, 0.7, 9.0], [True, True, False]) == pytest.approx(0.6)
    # Rewards that differ in float64 only are no tie.
    assert metrics.PreferenceAccuracy()([[1.0, 1.0 + 1e-12]]) == 0.0


@pytest.mark.parametrize(
    ("metric", "reward", "told"),
    [
        (metrics.PreferenceAccuracy(), [1.2, 0.3], "a row for each prompt"),
        (metrics.PreferenceAccuracy(), [[3.0, 2.0, 1.0]], "PreferenceAccuracy needs `scores`"),
        (metrics.PreferenceAccuracy(), [[3.0, 2.0], [1.0]], "PreferenceAccuracy needs `scores`"),
        (metrics.GradePearson(), [[3.0, 2.0]], "GradePearson needs `scores`"),
        (metrics.Margin(), [["a", "b"]], "expected `reward` to hold numbers"),
    ],
)
def test_metrics_guess_no_scores(metric, reward, told):
    with pytest.raises(ContractError, match=told):
        metric(reward)

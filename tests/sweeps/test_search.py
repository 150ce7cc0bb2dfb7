"""What a sweep tries, with a function in the place of training."""

from __future__ import annotations

import math

import pytest

from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.sweeps import Prune, Pruned, Range, Sweep, search

SEARCH = {"lr": {"low": "1e-6", "high": 1.0e-2, "log": True}, "objective": ["DPO", "IPO"]}


def sweep(folder, **changes):
    given = {"config": [], "search": SEARCH, "trials": 4, "sampler": "random", **changes}
    return Sweep(out=str(folder), **given)


class Objective:
    """Known values; notes each run, and may be interrupted before one."""

    def __init__(self, stop_at=None):
        self.runs, self.stop_at = [], stop_at

    def __call__(self, number, settings, seed, report):
        if len(self.runs) == self.stop_at:
            raise KeyboardInterrupt
        self.runs.append((number, settings["lr"], settings["objective"], seed))
        return math.log10(settings["lr"]) + 2 * seed


def test_a_trial_s_value_is_the_mean_over_its_seeds_and_the_best_comes_first(tmp_path):
    objective = Objective()
    found = search(sweep(tmp_path, seeds=[0, 3]), objective)
    assert [one.number for one in found] == sorted(range(4), key=lambda n: -objective.runs[2 * n][1])
    for one in found:
        assert one.value == pytest.approx(math.log10(one.settings["lr"]) + 3)
        assert one.deviation == pytest.approx(6 / math.sqrt(2))
        assert 1e-6 <= one.settings["lr"] <= 1e-2
    assert search(sweep(tmp_path, seeds=[0, 3]), objective) == found
    assert len(objective.runs) == 8, "finished trials are not run again"


def test_an_interrupted_sweep_tries_what_an_uninterrupted_one_does(tmp_path):
    whole, changes = Objective(), {"seeds": [0, 1], "sampler": "tpe", "trials": 3}
    expected = search(sweep(tmp_path / "whole", **changes), whole)
    settings, runs = sweep(tmp_path / "killed", **changes), []
    for stop_at in (1, None):
        objective = Objective(stop_at)
        if stop_at is None:
            assert search(settings, objective) == expected
        else:
            with pytest.raises(KeyboardInterrupt):
                search(settings, objective)
        runs += objective.runs
    assert runs == whole.runs, "nothing is left out and nothing trained twice"


def test_a_trial_below_the_median_is_pruned_by_its_first_seed(tmp_path):
    asked = []

    def train(number, settings, seed, report):
        curve = [0.9, 0.5, 0.6][number] + 0.01 * seed
        for validation in (1, 2):
            if report([curve] * validation):
                raise Pruned
        asked.append((number, seed))
        return curve

    pruned = sweep(tmp_path, trials=3, seeds=[0, 1], prune=Prune(first_trials=1, first_validations=1))
    best, *others = search(pruned, train)
    assert (best.number, best.state) == (0, "complete")
    assert {one.state for one in others} == {"pruned"}
    assert {one.value for one in others} == {None}
    assert asked == [(0, 0), (0, 1)]
    kept = search(sweep(tmp_path / "all", trials=3, seeds=[0, 1]), train)
    assert {one.state for one in kept} == {"complete"}


def test_a_grid_has_every_combination_once(tmp_path):
    tried = []

    def train(number, settings, seed, report):
        if number == 2 and 2 not in tried:
            tried.append(2)
            raise KeyboardInterrupt
        tried.append((settings["a"], settings["b"]))
        return 1.0

    grid = sweep(tmp_path, search={"a": [1, 2], "b": ["x", [1, 2]]}, sampler="grid", trials=None)
    assert grid.count == 4
    with pytest.raises(KeyboardInterrupt):
        search(grid, train)
    search(grid, train)
    tried.remove(2)
    assert sorted(tried) == [(1, "[1, 2]"), (1, "x"), (2, "[1, 2]"), (2, "x")]


def test_a_failed_trial_is_noted_and_three_at_the_start_end_the_sweep(tmp_path):
    def train(number, settings, seed, report):
        if number != 1:
            raise RunError("the loss is NaN")
        return math.nan if settings["objective"] == "never" else 0.5

    first, *others = search(sweep(tmp_path), train)
    assert (first.number, first.value) == (1, 0.5)
    assert [(one.state, one.error) for one in others] == [("fail", "the loss is NaN")] * 3
    always = sweep(tmp_path / "never", search={"objective": ["never", "also"]})
    with pytest.raises(RunError, match="the first 3 trials all failed"):
        search(always, lambda *_: math.nan)


def test_whole_numbers_stay_whole(tmp_path):
    steps = sweep(tmp_path, search={"n": {"low": 2, "high": 8, "step": 2}})
    assert steps.dimensions == {"n": Range(low=2, high=8, step=2)}
    found = search(steps, lambda number, settings, seed, report: float(settings["n"]))
    assert {one.settings["n"] for one in found} <= {2, 4, 6, 8}
    assert {type(one.settings["n"]) for one in found} == {int}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": {}}, "`search` to name at least one"),
        ({"search": {"lr": 1}}, "search.lr: expected a list of values or a range"),
        ({"search": {"lr": {"low": 1, "hihg": 2}}}, "search.lr has no setting 'hihg'; did you mean 'high'?"),
        ({"search": {"lr": {"low": 1, "high": 1}}}, "expected `low` below `high`, got 1 and 1"),
        ({"search": {"lr": {"low": 0, "high": 1, "log": True}}}, "logarithmic scale needs `low` above 0"),
        ({"search": {"lr": {"low": "x", "high": 1}}}, "expected `low` to be a number, got 'x'"),
        ({"search": {"lr": [1, 1]}}, "expected different values"),
        ({"search": {"run_dir": ["a", "b"]}}, "the sweep sets `run_dir`"),
        ({"trials": None}, "expected `trials` to be a number above 0"),
        ({"sampler": "grid"}, "remove `trials`"),
        ({"sampler": "grid", "trials": None}, "search.lr is a range"),
        ({"seeds": [1, 1]}, "expected `seeds` to be different"),
        ({"metric": "train/loss"}, "expected a validation's `metric`"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, changes, said):
    with pytest.raises(ConfigError) as caught:
        list(sweep(tmp_path, **changes).corners())
    assert said in str(caught.value)


def test_a_metric_s_former_name_is_the_present_one(tmp_path):
    assert sweep(tmp_path, metric="val/kl_0").metric == "val/log_ratio_0"

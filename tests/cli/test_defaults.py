"""What a run has without being told: safe settings, and callbacks that a user's own are added to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)

from pl_prefopt.callbacks import DashboardLayout, Generations, MarginHistogram, ProgressBar, Throughput
from pl_prefopt.cli.defaults import callbacks_of_run
from tests.cli.test_commands import CONFIGS, axes
from tests.runs import metrics_of, pair_rows, write_rows

ALL = [LearningRateMonitor, ProgressBar, Throughput, DashboardLayout, MarginHistogram, Generations]


class Shorter(Generations):
    """A user's variant of a default callback."""


def kinds(configured=None, chosen=True, **switches):
    """The classes of a run's callbacks."""
    trainer = SimpleNamespace(**{"logger": None, "enable_progress_bar": None, "barebones": False, **switches})
    return [type(one) for one in callbacks_of_run(configured, chosen, trainer)]


def without(*left_out):
    return [kind for kind in ALL if kind not in left_out]


def test_a_users_callbacks_are_added_to_the_defaults():
    assert kinds() == ALL
    assert kinds([EarlyStopping("val/loss")]) == [*ALL, EarlyStopping]
    assert kinds(EarlyStopping("val/loss")) == [*ALL, EarlyStopping]


@pytest.mark.parametrize(
    ("own", "default"),
    [
        (TQDMProgressBar, ProgressBar),
        (RichProgressBar, ProgressBar),
        (ProgressBar, ProgressBar),
        (LearningRateMonitor, LearningRateMonitor),
        (Shorter, Generations),
    ],
)
def test_a_users_callback_takes_the_place_of_the_default_of_its_kind(own, default):
    assert kinds([own()]) == [*without(default), own]


def test_the_list_that_earlier_versions_wrote_gives_no_duplicates():
    assert kinds([kind() for kind in ALL]) == ALL


def test_a_default_callback_may_be_left_out():
    assert kinds(chosen=False) == []
    assert kinds(EarlyStopping("val/loss"), chosen=False) == [EarlyStopping]
    assert kinds(chosen={"Generations": False, "Throughput": True}) == without(Generations)


def test_switches_of_the_trainer_leave_out_what_lightning_refuses_beside_them():
    without_logger = without(LearningRateMonitor, DashboardLayout, MarginHistogram, Generations)
    assert kinds(logger=False) == without_logger
    assert kinds([kind() for kind in ALL], logger=False) == without(LearningRateMonitor)
    assert kinds(logger=[]) == ALL  # the CSV of every run
    assert kinds([TQDMProgressBar()], enable_progress_bar=False) == without(ProgressBar)
    assert kinds([ModelCheckpoint(), *(kind() for kind in ALL), Callback()], barebones=True) == [
        *(DashboardLayout, MarginHistogram, Generations, Callback)
    ]
    assert kinds(barebones=True) == []


@pytest.mark.parametrize("command", ["fit", "precompute", "plan", "test"])
def test_without_the_base_file_the_settings_are_the_same(prefopt, command):
    method = CONFIGS / "methods" / "dpo.yaml"
    alone = yaml.safe_load(prefopt(command, "-c", method, "--print_config"))
    based = yaml.safe_load(prefopt(command, "-c", CONFIGS / "base.yaml", "-c", method, "--print_config"))
    assert alone == based
    assert_contains(alone, yaml.safe_load((CONFIGS / "base.yaml").read_text()))


def assert_contains(found, expected):
    """Compare every key of the base file, down to the leaves."""
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_contains(found[key], value)
        else:
            assert found[key] == value, key


@pytest.fixture
def settings(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(8))
    given = {"data.train": rows, "data.held_out": 2, "model.init_args.policy.name": tiny_model}
    given |= {"trainer.log_every_n_steps": 1, "default_callbacks.Generations": "false"}
    return [*axes(), *(part for key, value in given.items() for part in (f"--{key}", value))]


def test_a_run_with_a_bar_and_callbacks_of_its_own_is_repeated_by_its_settings(prefopt, settings):
    own = [{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}]
    own += [
        {"class_path": f"{__name__}.Noting"},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
    ]
    logger = {"class_path": "tests.cli.test_run_folders.Nowhere"}
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": own, "logger": logger}}))
    prefopt("fit", *settings, "-c", "own.yaml", "--run_dir", "one")
    first = Noting.seen
    assert {"TQDMProgressBar", "Throughput", "Noting", "ModelCheckpoint", "LastCheckpoint"} <= set(first)
    assert not {"Generations", "ProgressBar", "RichProgressBar"} & set(first)
    assert len(list(Path("one/checkpoints").glob("epoch=*.ckpt"))) == 1  # Lightning's own name for it
    prefopt("fit", "-c", "one/config.yaml", "--run_dir", "two")
    assert Noting.seen == first
    assert metrics_of("one") == metrics_of("two")


class Noting(Callback):
    """Notes what a run's callbacks are."""

    seen: tuple[str, ...] = ()

    def on_train_start(self, trainer, pl_module):
        """Note them."""
        Noting.seen = tuple(type(one).__name__ for one in trainer.callbacks)


def test_a_misspelt_default_callback_is_refused(prefopt, settings):
    said = prefopt.fails("fit", *settings, "--default_callbacks.Generation", "false")
    assert "got 'Generation'; did you mean 'Generations'?" in said


def test_barebones_times_the_steps_and_keeps_nothing(prefopt, settings):
    printed = prefopt("fit", *settings, "--trainer.barebones", "true", "--run_dir", "run")
    assert "`trainer.barebones`: this run writes neither checkpoints nor metrics." in printed
    assert not Path("run").exists()
    said = prefopt.fails("fit", *settings, "--trainer.barebones", "true", "--trainer.profiler", "simple")
    assert "Profiling can impact raw speed so it is disabled in barebones mode." in said


def test_without_a_progress_bar_lightning_adds_none(prefopt, settings):
    printed = prefopt("fit", *settings, "--default_callbacks", "false", "--trainer.fast_dev_run", "1")
    assert "Epoch 0" not in printed

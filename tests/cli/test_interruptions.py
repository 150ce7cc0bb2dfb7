"""Runs that are killed anywhere and started again with the same command end with the very same weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.modules import read_checkpoint
from tests.cli.interrupted import Runs
from tests.cli.test_commands import axes
from tests.runs import scored_rows, write_rows

STEP = "pl_prefopt.modules.base:PreferenceModule.on_train_batch_end"
VALIDATION = "pl_prefopt.modules.base:PreferenceModule.validation_step"
FLUSH = "pl_prefopt.files:_flush"
PART = "pl_prefopt.references.precompute:write_tensors"
SMALL_PARTS = {"pl_prefopt.references.precompute:ROWS_PER_SHARD": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interrupted")


@pytest.fixture(scope="module")
def runs(folder):
    server = Runs(folder, SMALL_PARTS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def command(tiny_model, folder):
    """A run that needs everything right to be repeatable: dropout, accumulation, warm-up, validation."""
    rows = write_rows(folder / "rows.jsonl", scored_rows(14))
    settings = {
        "data.train": rows,
        "data.held_out": 3,
        "data.batch_size": 2,
        "model.init_args.policy.name": tiny_model,
        "model.init_args.policy.lora.lora_dropout": 0.3,
        "model.init_args.optimizer.lr": 0.01,
        "references.precompute": "true",
        "trainer.max_epochs": 2,
        "trainer.accumulate_grad_batches": 2,
        "trainer.val_check_interval": 3,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
        "last.minutes": 0,
        "ckpt_path": "last",
    }
    return ["fit", *axes(), *(part for key, value in settings.items() for part in (f"--{key}", value))]


@pytest.fixture(scope="module")
def uninterrupted(runs, command, folder):
    status, printed = runs(*command, "--run_dir", "whole")
    assert status == 0, printed
    return folder / "whole" / "checkpoints"


def assert_same(one: Path, other: Path) -> None:
    """Compare weights, optimiser, schedule and counts, bit by bit."""
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert set(first["state_dict"]) == set(second["state_dict"])
    for name, weight in first["state_dict"].items():
        assert torch.equal(weight, second["state_dict"][name]), name
    for number, state in first["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, second["optimizer_states"][0]["state"][number][name]), (number, name)
    for key in ("epoch", "global_step", "lr_schedulers", "pl_prefopt_seed"):
        assert first[key] == second[key], key


def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(runs, command, uninterrupted, folder):
    own = ("--run_dir", "killed", "--references.cache_dir", "killed-tables")
    checkpoints = folder / "killed" / "checkpoints"
    kills = [
        {"place": PART, "call": 2, "how": "SIGKILL"},
        {"place": STEP, "call": random.Random().randrange(1, 5), "how": "SIGKILL"},
        {"place": "torch:save", "call": 2, "how": "torn"},
    ]
    for fault in kills:
        status, printed = runs(*command, *own, fault=fault)
        assert status == -9, (fault, printed)
    # SIGTERM comes after the first of two batches that make a step; that step is saved, and no other.
    before = read_checkpoint(checkpoints / "last.ckpt")["global_step"]
    fault = {"place": STEP, "call": 1, "how": "SIGTERM"}
    status, printed = runs(*command, *own, "--last.minutes", 99, fault=fault)
    assert status == 143, printed
    assert f"stopped by SIGTERM: step {before + 1} of 6 is saved" in printed
    assert "Traceback" not in printed
    status, printed = runs(*command, *own)
    assert status == 0, printed
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(checkpoints / name, uninterrupted / name)


def test_so_do_runs_killed_in_validations_and_while_files_are_written(runs, command, uninterrupted, folder):
    # Without the check before training, whose batches would count.
    own = ("--run_dir", "killed-there", "--trainer.num_sanity_val_steps", 0)
    checkpoints, written = folder / "killed-there" / "checkpoints", {}
    torn = {"place": "torch:save", "how": "torn"}
    kills = {
        "between the two batches of the first validation": {"place": VALIDATION, "call": 2},
        "in the first batch of a validation": {"place": VALIDATION, "call": 1},
        "when its numbers are in a draft": {"place": FLUSH, "call": 1, "named": "metrics.json"},
        "half way into the best checkpoint": {**torn, "call": 1, "named": "best.ckpt"},
        "when the last checkpoint is in a draft": {"place": FLUSH, "call": 2, "named": "last.ckpt"},
        "after it got its name": {"place": FLUSH, "call": 1, "named": "checkpoints"},
        "in a later validation": {"place": VALIDATION, "call": 3},
    }
    for when, fault in kills.items():
        status, printed = runs(*command, *own, fault={"how": "SIGKILL", **fault})
        assert status == -9, (when, printed)
        last = checkpoints / "last.ckpt"
        written[when] = read_checkpoint(last)["global_step"] if last.exists() else 0
    assert list(written.values()) == sorted(written.values()), written
    status, printed = runs(*command, *own)
    assert status == 0, printed
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(checkpoints / name, uninterrupted / name)
    ours, whole = (read_evaluations(run.parent / "metrics.json") for run in (checkpoints, uninterrupted))
    assert [(one.step, one.metrics) for one in ours] == [(one.step, one.metrics) for one in whole]


EXPORT_KILLS = {
    "weights are being written": ("peft.peft_model:safe_save_file", 1),
    "they are being tried": ("pl_prefopt.cli.export:compare", 1),
    "all is written": ("pathlib:Path.rename", 1),
}


def test_a_kill_during_an_export_leaves_nothing_that_looks_like_one(runs, uninterrupted, folder):
    command = ("export", uninterrupted / "last.ckpt", "--out")
    before = {path.name for path in folder.iterdir()} | {"printed.txt"}
    for when, (place, call) in EXPORT_KILLS.items():
        status, printed = runs(*command, "out", fault={"place": place, "call": call, "how": "SIGKILL"})
        assert status == -9, (when, printed)
        assert {path.name for path in folder.iterdir()} == before | {".out.tmp"}, when
    status, printed = runs(*command, "out")
    assert status == 0, printed
    assert {path.name for path in folder.iterdir()} == before | {"out"}
    whole = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= set(whole)
    # As soon as the folder has its name, it is whole.
    fault = {"place": "pl_prefopt.files:_flush", "call": len(whole) + 2, "how": "SIGKILL"}
    status, printed = runs(*command, "again", fault=fault)
    assert status == -9, printed
    assert {path.name for path in (folder / "again").iterdir()} == set(whole)
    weights = (folder / "again" / "adapter_model.safetensors").read_bytes()
    assert weights == whole["adapter_model.safetensors"]

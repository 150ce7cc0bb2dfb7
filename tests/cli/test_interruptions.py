"""Runs that are killed anywhere and started again with the same command end with the very same weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from pl_prefopt.modules import read_checkpoint
from tests.cli.interrupted import Runs
from tests.cli.test_commands import axes
from tests.runs import scored_rows, write_rows

STEP = "pl_prefopt.modules.base:PreferenceModule.on_train_batch_end"
PART = "pl_prefopt.references.precompute:write_tensors"
SMALL_PARTS = {"pl_prefopt.references.precompute:ROWS_A_PART": 2}


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

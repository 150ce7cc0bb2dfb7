"""Two processes on a CPU: one folder, shared scoring, and the numbers of one process."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from pl_prefopt.evaluations import read_evaluations
from tests.cli.test_commands import axes
from tests.cli.test_interruptions import assert_same
from tests.runs import NO_TEXTS, metrics_of, scored_rows, write_rows


def prefopt(folder: Path, *arguments: object) -> str:
    """Run `prefopt` in processes of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pl_prefopt", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
SLOW = """
import time

import torch.distributed
from lightning.pytorch import Callback


class Slow(Callback):
    'Rank 1 is behind in training and in saving, rank 0 in validation.'

    def sleep(self, rank):
        if torch.distributed.get_rank() == rank:
            time.sleep(0.2)

    def on_train_batch_start(self, *_):
        self.sleep(1)

    def on_train_batch_end(self, *_):
        self.sleep(1)

    def on_save_checkpoint(self, *_):
        self.sleep(1)

    def on_validation_batch_start(self, *_):
        self.sleep(0)

    def on_validation_end(self, *_):
        self.sleep(0)
"""


@pytest.fixture(scope="module")
def fit(tiny_model, tmp_path_factory):
    """Train in two processes; return the run's folder."""
    folder = tmp_path_factory.mktemp("two")
    # 9 rows do not divide by 2 processes: the last batches are uneven.
    rows = write_rows(folder / "rows.jsonl", scored_rows(9))
    (folder / "slow.py").write_text(SLOW)
    settings = ["--data.train", rows, "--data.val", rows, "--model.init_args.policy.name", tiny_model]
    settings += ["--trainer.callbacks+", "Generations", "--trainer.callbacks.max_new_tokens", "4"]
    cached = ["--references.precompute", "true", "--model.init_args.optimizer.lr", "0.01"]
    # By one rank's clock it is time to save where it is not by the other's.
    often = ["--last.minutes", "0.01", "--trainer.val_check_interval", "1", "--data.batch_size", "2"]
    made: set[Path] = set()

    def run(name, *arguments):
        own = ["--references.cache_dir", f"{name}-tables", *arguments]
        prefopt(folder, "fit", *axes(), *settings, *TWO, *cached, *often, *own)
        (new,) = set((folder / "runs").iterdir()) - made
        made.add(new)
        return new

    return run


@pytest.fixture(scope="module")
def together(fit):
    """The folder of a run of two processes of about equal speed."""
    return fit("together")


def test_two_processes_train_and_measure_as_one(together):
    run, folder = together, together.parents[1]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not list(folder.rglob("*.parts"))
    # One process writes texts; a histogram has the pairs of both.
    with (run / "generations.csv").open(encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    validations = len({each["step"] for each in texts})
    assert len(texts) == 3 * validations
    with (run / "val-margins.csv").open(encoding="utf-8") as file:
        pairs = sum(len(set(row["scores"])) * (len(set(row["scores"])) - 1) // 2 for row in scored_rows(9))
        assert sum(int(each["count"]) for each in csv.DictReader(file)) == pairs * validations

    measured = metrics_of(run)
    alone = ["--trainer.devices", "1", "--references.precompute", "false"]
    prefopt(folder, "validate", "-c", run / "config.yaml", "--ckpt_path", "last", *alone)
    assert metrics_of(run) == pytest.approx(measured, abs=1e-4)
    assert measured["val/margin"] != 0


def test_processes_of_unequal_speed_wait_for_one_another(together, fit):
    slow = fit("slow", "--trainer.callbacks+", "slow.Slow")
    for name in ("best.ckpt", "last.ckpt"):
        assert_same(slow / "checkpoints" / name, together / "checkpoints" / name)
    ours, others = (read_evaluations(run / "metrics.json")[0] for run in (slow, together))
    assert (ours.step, ours.metrics) == (others.step, others.metrics)
    for file in ("generations.csv", "val-margins.csv"):
        assert (slow / file).read_text() == (together / file).read_text()


def start_rank(rank: int, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start one of two ranks, as torchrun does."""
    launched = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "TORCHELASTIC_RUN_ID": "test",
    }
    command = [sys.executable, "-m", "pl_prefopt", *map(str, arguments)]
    environment = {**os.environ, **launched, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / f"rank{rank}").open("w") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )


@cache
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_survivor_of_a_killed_rank_ends_with_a_sentence(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(9))
    settings = [
        *NO_TEXTS,
        "--data.train",
        rows,
        "--data.held_out",
        "0",
        "--model.init_args.policy.name",
        tiny_model,
    ]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "10000"]
    command = ["fit", *axes(), *settings, *two, "--run_dir", "run"]
    ranks = [start_rank(rank, tmp_path, *command) for rank in range(2)]
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", ranks)
        ranks[1].kill()
        assert ranks[0].wait(timeout=120) == 1
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    said = (tmp_path / "rank0").read_text()
    assert "prefopt: another rank of this run has exited or can't be reached (Connection " in said
    assert "Traceback" not in said


def wait_for(file: Path, ranks: list[subprocess.Popen[str]]) -> None:
    """Wait until a file is there."""
    for _ in range(3000):
        if file.exists():
            return
        assert all(rank.poll() is None for rank in ranks), "a rank ended before it trained"
        time.sleep(0.1)
    raise AssertionError(f"no {file}")

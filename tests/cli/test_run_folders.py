"""A run is its folder, whatever loggers it has, wherever the folder is moved, and only if it took a step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger

from pl_prefopt.cli.run_config import RunConfig
from pl_prefopt.evaluations import read_facts
from pl_prefopt.references import InitialPolicy
from pl_prefopt.report.curves import read_curves
from tests.cli.test_commands import axes
from tests.runs import metrics_of, pair_rows, write_rows

RUN_FILES = {"config.yaml", "metrics.json", "run.json", "fit", "checkpoints", ".lock", ".metrics.json.lock"}


class Nowhere(Logger):
    """A logger without a folder, as MLflow's is."""

    name, version = "nowhere", "1"

    def log_metrics(self, metrics, step=None):
        """Log nothing."""

    def log_hyperparams(self, params, *args, **kwargs):
        """Log nothing."""


@pytest.fixture
def settings(tiny_model, tmp_path):
    """Paths relative to the working directory."""
    shutil.copytree(tiny_model, "model")
    write_rows(tmp_path / "rows.jsonl", pair_rows(8))
    given = {
        "data.train": "rows.jsonl",
        "data.held_out": 2,
        "model.init_args.policy.name": "model",
        "trainer.log_every_n_steps": 1,
        "default_callbacks.Generations": "false",
    }
    return [*axes(), *(part for key, value in given.items() for part in (f"--{key}", value))]


LOGGERS = {
    "one without a folder": [{"class_path": f"{__name__}.Nowhere"}],
    "a CSV elsewhere": {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "elsewhere", "name": "csv"},
    },
    "none": False,
}


@pytest.mark.parametrize("logger", LOGGERS.values(), ids=LOGGERS)
def test_a_runs_files_are_in_its_folder_whatever_loggers_it_has(prefopt, settings, logger):
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger, "default_root_dir": "root"}}))
    fit = ["fit", *settings, "-c", "own.yaml", "--run_dir", "runs/own"]
    prefopt(*fit)
    run = Path("runs/own")
    csv = set() if logger is False else {"metrics.csv", "val-margins.csv"}
    assert {path.name for path in run.iterdir()} == RUN_FILES | csv
    facts = read_facts(run / "run.json")
    assert facts.steps > 0
    assert facts.seconds > 0
    assert facts.hardware.startswith("CPU (")
    assert facts.rows["train"]["rows"] + facts.rows["val"]["rows"] == 8
    assert not {path.name for path in Path().iterdir()} & {"config.yaml", "None", "lightning_logs", "root"}
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert "already contains a run" in prefopt.fails(*fit, "--model.init_args.optimizer.lr", "0.1")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    prefopt("validate", "-c", run / "config.yaml", "--ckpt_path", "last")
    assert (run / "validate" / "config.yaml").is_file()
    if csv:
        curves = read_curves(run / "validate")
        assert set(curves["val/loss"].steps) == {facts.steps}, "that of the checkpoint"
    prefopt("export", run / "checkpoints" / "last.ckpt", "--out", "exported")
    assert "Wrote runs/own/report.html" in prefopt("report", run)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copied_run_is_a_run_of_its_own_from_any_folder(prefopt, settings, tmp_path, monkeypatch):
    prefopt("fit", *settings, "--run_dir", "runs/../runs/./first", "--last.minutes", "0")
    first = Path("runs/first")
    assert set(os.listdir("runs")) == {"first"}
    measured = metrics_of(first)
    shutil.copytree(first, "runs/copy")
    before = contents(first.absolute())
    (tmp_path / "elsewhere").mkdir()
    write_rows(tmp_path / "elsewhere" / "rows.jsonl", pair_rows(3))  # other rows, of the same name
    monkeypatch.chdir("elsewhere")
    copy = Path("../runs/copy")
    (copy / "metrics.json").unlink()
    prefopt("validate", "-c", copy / "config.yaml", "--ckpt_path", "last")
    assert metrics_of(copy) == pytest.approx(measured, abs=1e-5)
    prefopt("predict", "-c", copy / "config.yaml", "--ckpt_path", "best", "--data.predict", "rows.jsonl")
    assert len((copy / "predictions.jsonl").read_text().splitlines()) == 3  # what is typed here lies here
    prefopt("export", copy / "checkpoints" / "last.ckpt", "--out", "none/../exported", "--merge", "true")
    assert Path("exported/model.safetensors").is_file()
    assert f"Wrote {copy / 'report.html'}" in prefopt("report", copy)
    # The copy goes on by itself, too; a renamed one as well.
    shutil.move("../runs/copy", "../runs/renamed")
    renamed = Path("../runs/renamed")
    prefopt("fit", "-c", renamed / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    saved = torch.load(renamed / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert contents(tmp_path / "runs" / "first") == before
    assert set(os.listdir()) == {"rows.jsonl", "exported"}


DAMAGES = {"empty": b"", "cut off": b"paths_from: [.., /]\ntrainer:\n  max_epo", "binary": b"\x00\xff\xfe"}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_damaged_settings_of_a_run_are_a_sentence_in_every_command(prefopt, content):
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt").touch()
    Path("run/config.yaml").write_bytes(content)
    for command in (
        *(("fit", "-c", "run/config.yaml", "--ckpt_path", "last"), ("report", "run")),
        *(("validate", "-c", "run/config.yaml"), ("test", "-c", "run/config.yaml", "--data.test", "x.jsonl")),
        *(("plan", "-c", "run/config.yaml"), ("export", "run/checkpoints/last.ckpt", "--out", "out")),
    ):
        said = prefopt.fails(*command)
        assert "run/config.yaml is damaged, or was not written by `prefopt fit`" in said
        assert len(said.strip().splitlines()) == 1


FAILURES = {
    "parsing": ["--data.trian", "x"],
    "a setting": ["--data.batch_size", "0"],
    "data": ["--data.train", "none.jsonl"],
    "a model": ["--model.init_args.policy.name", "nowhere/nothing"],
    "references": ["--references.members", "[]"],
    "a checkpoint": ["--ckpt_path", "none.ckpt"],
    "a monitor": ["--best.monitor", "val/acc"],
}


@pytest.mark.parametrize("arguments", FAILURES.values(), ids=FAILURES)
def test_a_start_that_fails_leaves_nothing(prefopt, settings, arguments):
    prefopt.fails("fit", *settings, *arguments)
    assert not Path("runs").exists()
    prefopt.fails("fit", *settings, "--run_dir", "some/where", *arguments)
    assert not Path("some").exists()


def test_a_start_that_fails_late_leaves_nothing_but_what_was_there(prefopt, settings, monkeypatch):
    def fail(*_):
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(InitialPolicy, "prepare", fail)
        assert prefopt.run("fit", *settings)[0] == 1
    assert not Path("runs").exists()
    monkeypatch.setattr(RunConfig, "_write", fail)  # the last of all that is done before the first step
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("to be kept")
    assert prefopt.run("fit", *settings, "--run_dir", "mine")[0] == 1
    assert os.listdir("mine") == ["notes.txt"]


def test_a_failed_resumption_or_evaluation_leaves_a_run_as_it_was(prefopt, settings):
    prefopt("fit", *settings, "--run_dir", "run")
    before = contents(Path("run"))
    resume = ["fit", "-c", "run/config.yaml", "--ckpt_path", "last"]
    assert "made with policy.lora" in prefopt.fails(*resume, "--model.init_args.policy.lora.r", "2")
    test = ["test", "-c", "run/config.yaml", "--ckpt_path", "last"]
    assert "none.jsonl" in prefopt.fails(*test, "--data.test", "none.jsonl")
    assert contents(Path("run")) == before
    assert not Path("run/test").exists()
    # A trial leaves nothing at all.
    prefopt(*resume, "--trainer.fast_dev_run", "1")
    prefopt(*test, "--data.test", "rows.jsonl", "--trainer.fast_dev_run", "1")
    assert contents(Path("run")) == before

"""The progress of a run: one line of a terminal, lines in a log."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.test_commands import axes
from tests.runs import metrics_of, scored_rows, write_rows


@pytest.fixture
def fit(prefopt, tiny_model, tmp_path):
    rows = write_rows(tmp_path / "some rows.jsonl", scored_rows(12))
    settings = ["--data.train", rows, "--data.held_out", "4", "--model.init_args.policy.name", tiny_model]

    def run(*arguments, seconds=None):
        settings_of_bar = {} if seconds is None else {"init_args": {"seconds": seconds}}
        callbacks = json.dumps([{"class_path": "pl_prefopt.callbacks.ProgressBar", **settings_of_bar}])
        quick = (
            "--default_callbacks.Generations",
            "false",
            "--data.batch_size",
            "1",
            "--trainer.log_every_n_steps",
            "2",
            "--run_dir",
            "a run",
        )
        return prefopt("fit", *axes(), *settings, *quick, "--trainer.callbacks", callbacks, *arguments)

    return run


def test_a_log_has_a_line_after_the_steps_whose_metrics_were_logged(fit):
    printed = fit("--trainer.val_check_interval", "4", seconds=0)
    assert "━" not in printed.partition("Last validation")[0].rpartition("Total")[2]
    with Path("a run/metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        step = int(row["step"]) + 1  # Lightning counts what has been logged before the step
        if row["train/loss"]:
            loss, accuracy = (float(row[f"train/{name}"]) for name in ("loss", "accuracy"))
            numbers = f"loss {loss:.4g}, accuracy {accuracy:.4g}"
            line = rf"^Step {step} of 8: {numbers}, \d+ tokens/s, \d:\d\d:\d\d left$"
            assert re.search(line, printed, flags=re.MULTILINE)
    steps = re.findall(r"^Step (\d) of 8: ", printed, flags=re.MULTILINE)
    assert steps == ["2", "4", "6", "8"]
    assert printed.rindex("Step 8 of 8: ") < printed.rindex("Step 8 of 8, validation: ")
    last = metrics_of("a run")
    expected = ", ".join(f"{name} {last[f'val/{name}']:.4g}" for name in ("loss", "accuracy", "margin"))
    assert f"Step 8 of 8, validation: {expected}\n" in printed
    assert max(map(len, re.findall(r"^Step .*", printed, flags=re.MULTILINE))) <= 80


def test_quick_steps_do_not_fill_a_log(fit):
    printed = fit()
    assert re.findall(r"^Step (\d) of 8: ", printed, flags=re.MULTILINE) == ["2", "8"]


def test_long_evaluations_have_lines_too(fit, prefopt):
    fit()
    own = '[{"class_path": "pl_prefopt.callbacks.ProgressBar", "init_args": {"seconds": 0}}]'
    command = ("-c", "a run/config.yaml", "--trainer.callbacks", own, "--run_dir", "a run")
    for stage, name in (("validate", "Validation"), ("test", "Test"), ("predict", "Prediction")):
        split = "val" if stage == "validate" else stage
        rows = (f"--data.{split}", "some rows.jsonl", "--data.eval_batch_size", "1")
        printed = prefopt(stage, *command, *rows)
        told = re.findall(rf"^{name}: batch (\d+) of 12, \d:\d\d:\d\d left$", printed, flags=re.MULTILINE)
        assert told == [str(number) for number in range(1, 12)]


def test_switched_off_means_no_lines_either(fit):
    assert "Step" not in fit("--trainer.enable_progress_bar", "false")


@pytest.mark.parametrize("columns", [80, 140])
def test_the_line_of_a_terminal_does_not_wrap(fit, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", fit("--trainer.enable_model_summary", "false"))
    bars = [line for line in re.split(r"[\r\n]+", printed) if line.startswith("Epoch")]
    assert bars
    assert "8/8" in bars[-1]
    shown = ["loss: ", "accuracy: ", *(["margin: ", "tokens/s: "] if columns == 140 else [])]
    for name in shown:
        assert name in bars[-1]
    assert all(len(line) <= columns for line in bars)
    # What does not fit is left out, and not on a line of its own.
    numbers = [line for line in re.split(r"[\r\n]+", printed) if "loss: " in line or "margin: " in line]
    assert all(line.startswith("Epoch") for line in numbers)


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "all weights"])
def test_a_run_ends_with_commands_that_work_as_they_stand(fit, prefopt, full):
    printed = fit(*(["-c", "hardware/full_cpu"] if full else []))
    commands = printed.partition("The run is in a run. Next, for example:\n")[2].splitlines()
    words = [shlex.split(command) for command in commands if command.startswith("  prefopt ")]
    assert [each[:2] for each in words] == [
        ["prefopt", command] for command in ("validate", "predict", "export", "report")
    ]
    for each in words:
        prefopt(*each[1:])
    assert Path("a run/model" if full else "a run/adapter").is_dir()
    assert Path("a run/report.html").is_file()
    assert len(Path("a run/predictions.jsonl").read_text().splitlines()) == 12


def test_a_trial_of_a_step_leaves_nothing_to_go_on_with(fit):
    printed = fit("--trainer.fast_dev_run", "1")
    assert "The run is in" not in printed
    assert not os.path.exists("a run/metrics.json")

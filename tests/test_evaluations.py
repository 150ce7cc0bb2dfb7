"""What was measured on what stands side by side, and readers take the right one."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from pl_prefopt.evaluations import (
    Evaluation,
    add_evaluation,
    main_evaluation,
    main_metrics,
    read_evaluations,
)
from pl_prefopt.report import build_report, read_runs
from tests.cli.test_commands import axes
from tests.report.folders import pair_rows, write_run
from tests.runs import metrics_of, scored_rows, write_rows

OWN = {"data": "rows.jsonl", "fingerprint": "own", "method": "DPO(beta=0.1)"}


def measured(number, command="validate", stage="val", **about):
    return Evaluation(metrics={f"{stage}/accuracy": number}, command=command, **{**OWN, **about})


def test_what_is_measured_again_takes_the_place_of_the_earlier_and_nothing_else_does(tmp_path):
    path = tmp_path / "metrics.json"
    last = {"checkpoint": "checkpoints/last.ckpt", "step": 6}
    others = [
        measured(0.1, step=3, checkpoint="checkpoints/last.ckpt"),
        measured(0.2, step=6, checkpoint="/elsewhere/last.ckpt"),
        measured(0.3, **last, fingerprint="other"),
        measured(0.4, **last, part="1 of 2 batches"),
        measured(0.5, **last, method="IPO(beta=0.1)"),
        measured(0.6, "test", "test", **last),
        measured(0.7, "fit", step=6),
    ]
    for each in [measured(0.8, **last), *others, measured(0.9, **last)]:
        add_evaluation(path, each)
    assert read_evaluations(path) == [*others, measured(0.9, **last)]
    add_evaluation(path, measured(0.71, "fit", step=12))  # the curve of training has the earlier ones
    found = read_evaluations(path)
    assert [one.step for one in found if one.command == "fit"] == [12]
    assert len(found) == len(others) + 1


ADD = """
import sys
from pathlib import Path
from pl_prefopt.evaluations import Evaluation, add_evaluation
print("ready", flush=True)
sys.stdin.readline()
for step in range(20):
    new = Evaluation(metrics={"val/accuracy": 0.5}, command=sys.argv[1], step=step, checkpoint=sys.argv[1])
    add_evaluation(Path("metrics.json"), new)
"""


def test_of_evaluations_at_the_same_time_none_is_lost(tmp_path):
    names = ["validate", "test"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, name],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    assert [one.stdout.readline() for one in running] == ["ready\n"] * 2
    for one in running:
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.wait(timeout=120) for one in running] == [0, 0]
    for one in running:
        one.communicate()
    found = read_evaluations(tmp_path / "metrics.json")
    for name in names:
        assert [one.step for one in found if one.checkpoint == name] == list(range(20))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_loses_no_evaluation(tmp_path, monkeypatch, number):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(number, "no locks here")))
    add_evaluation(tmp_path / "metrics.json", measured(0.5))
    assert read_evaluations(tmp_path / "metrics.json") == [measured(0.5)]


MAIN = {
    "the newest": ([measured(0.1, step=3), measured(0.2, step=6)], 0.2),
    "the run's own rows": ([measured(0.1, "fit", step=6), measured(0.2, step=6, fingerprint="other")], 0.1),
    "newer on the run's own rows": ([measured(0.1, "fit", step=6), measured(0.2, step=3)], 0.2),
    "the objective that was trained": ([measured(0.1, "fit"), measured(0.2, method="IPO()")], 0.1),
    "all rows": ([measured(0.1, step=6), measured(0.2, step=6, part="1 of 2 batches")], 0.1),
    "trained weights": ([measured(0.1, step=6), measured(0.2, step=0)], 0.1),
    "weights before training if there are no others": ([measured(0.1, step=0)], 0.1),
}  # fmt: skip


@pytest.mark.parametrize("case", MAIN)
def test_the_evaluation_that_stands_for_a_run(case):
    evaluations, expected = MAIN[case]
    assert main_metrics(evaluations) == {"val/accuracy": expected}
    assert main_evaluation(evaluations, "test") is None


def test_a_file_of_an_earlier_version_is_read_and_kept(tmp_path):
    path = tmp_path / "metrics.json"
    old = {"test/accuracy": 0.7, "val/accuracy": 0.6, "val/margin": 0.5}
    path.write_text(json.dumps(old))
    assert main_metrics(read_evaluations(path)) == old
    add_evaluation(path, measured(0.9, step=6))
    validation, test, new = read_evaluations(path)
    assert (validation.metrics, test.metrics) == (
        {"val/accuracy": 0.6, "val/margin": 0.5},
        {"test/accuracy": 0.7},
    )
    assert (validation.data, validation.step, validation.weights) == (None, None, "not recorded")
    # No number of the old validation beside one of the new.
    assert main_metrics([validation, test, new]) == {"test/accuracy": 0.7, "val/accuracy": 0.9}


@pytest.mark.parametrize("damaged", ["[1]", "{", '{"evaluations": [{}]}', '{"evaluations": 3}', '{"a": "b"}'])
def test_a_damaged_file_is_set_aside(tmp_path, damaged):
    path = tmp_path / "metrics.json"
    path.write_text(damaged)
    with pytest.raises(ValueError, match=r"."):
        read_evaluations(path)
    add_evaluation(path, measured(0.9))
    assert (tmp_path / "metrics.damaged.json").read_text() == damaged
    assert read_evaluations(path) == [measured(0.9)]


def test_a_later_version_may_write_more(tmp_path):
    path = tmp_path / "metrics.json"
    add_evaluation(path, measured(0.9))
    content = json.loads(path.read_text())
    content["evaluations"][0]["new"] = 1
    path.write_text(json.dumps(content))
    assert read_evaluations(path) == [measured(0.9)]


@pytest.fixture
def run(prefopt, tiny_model, tmp_path):
    """A run that was validated on its own rows, on others, before training and in part, and tested."""
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    write_rows(tmp_path / "other.jsonl", scored_rows(5, source="other "))
    settings = ["--data.train", rows, "--data.held_out", "3", "--model.init_args.policy.name", tiny_model]
    prefopt("fit", *axes(), *settings, "--run_dir", "run", "--model.init_args.optimizer.lr", "0.01")
    config = ("-c", "run/config.yaml")
    prefopt("validate", *config, "--ckpt_path", "last", "--data.val", "other.jsonl")
    elsewhere = ("--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "alone")
    prefopt("validate", *config, *elsewhere, "--data.val", "other.jsonl")
    prefopt("test", *config, "--ckpt_path", "best", "--data.test", "other.jsonl")
    prefopt("validate", *config, "--run_dir", "run")
    small = ("--data.eval_batch_size", "2", "--trainer.limit_val_batches", "1")
    prefopt("validate", *config, "--ckpt_path", "last", *small)
    return Path("run")


def test_every_number_knows_its_rows_its_weights_and_its_date(run, prefopt, tmp_path):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    own = saved["PreferenceDataModule"]["splits"]["val"]["fingerprint"]
    steps = saved["global_step"]
    found = read_evaluations(run / "metrics.json")
    names = ("command", "stage", "data", "held_out", "rows", "part", "checkpoint", "step")
    about = [tuple(getattr(one, name) for name in names) for one in found]
    rows, last = str(tmp_path / "rows.jsonl"), "checkpoints/last.ckpt"
    assert about == [
        ("fit", "val", rows, True, 3, None, None, steps),
        ("validate", "val", "other.jsonl", False, 5, None, last, steps),
        ("test", "test", "other.jsonl", False, 5, None, "checkpoints/best.ckpt", steps),
        ("validate", "val", rows, True, 3, None, None, 0),
        ("validate", "val", rows, True, 3, "1 of 2 batches", last, steps),
    ]
    fit, other, _, untrained, part = found
    assert [one.fingerprint == own for one in found] == [True, False, False, True, True]
    assert {one.method for one in found} == {"DPO(beta=0.1, label_smoothing=0.0, pairing=AllPairs())"}
    assert all(datetime.fromisoformat(one.date).tzinfo for one in found)
    assert untrained.metrics["val/margin"] == 0
    assert fit.metrics["val/margin"] not in (0, other.metrics["val/margin"], part.metrics["val/margin"])
    # Another run's folder names the checkpoint from the root.
    assert metrics_of("alone") == pytest.approx(dict(other.metrics), abs=1e-6)
    (alone,) = read_evaluations(Path("alone/metrics.json"))
    assert alone.checkpoint == str(tmp_path / "run" / last)


def test_the_card_prints_numbers_with_their_rows_and_the_report_takes_the_runs_own(run, prefopt):
    fit, other, test, untrained, part = read_evaluations(run / "metrics.json")
    prefopt("export", run / "checkpoints" / "last.ckpt", "--out", "exported")
    text = ModelCard.load("exported/README.md").text
    shown = MarkdownIt("commonmark").enable("table").render(text)
    lines = [line for line in shown.splitlines() if line.startswith(("<p>Validation on ", "<p>Test on "))]
    for one, line in zip((fit, other, test, part), lines, strict=True):
        assert line.startswith(f"<p>{'Test' if one is test else 'Validation'} on ")
        rows = "rows.jsonl, 3 rows" if one.held_out else "other.jsonl, 5 rows"
        for words in (rows, one.part or "", one.fingerprint, one.weights, one.method, one.date):
            assert words in line
        table = shown[shown.index(line) :].partition("</table>")[0]
        for name, value in one.metrics.items():
            assert f"<td>{name}</td>\n<td>{value:.4g}</td>" in table
    assert untrained.weights not in shown
    (page,) = read_runs([run])
    assert page.metrics == {**fit.metrics, **test.metrics}
    html = build_report([page]).html
    assert "All 5 evaluations" in html
    assert f"other.jsonl, 5 rows · checkpoints/best.ckpt, step {test.step}" in html
    assert "the figures and cases are of its last" not in html  # predictions of the test


def test_a_report_says_where_its_figures_are_of_other_rows_than_its_numbers(tmp_path):
    folder = write_run(tmp_path / "run", pair_rows(), stage="validate")
    add_evaluation(folder / "metrics.json", measured(0.5, "fit", step=6))
    add_evaluation(folder / "metrics.json", measured(0.6, step=6, checkpoint="checkpoints/last.ckpt"))
    last = "(other.jsonl · checkpoints/best.ckpt, step 6)"
    said = f"run: the figures and cases are of its last validation {last}, "
    assert said not in build_report(read_runs([folder])).html
    other = {"data": "other.jsonl", "fingerprint": "other", "checkpoint": "checkpoints/best.ckpt"}
    add_evaluation(folder / "metrics.json", measured(0.7, step=6, **other))
    html = build_report(read_runs([folder])).html
    assert f"{said}the numbers of another one (rows.jsonl · checkpoints/last.ckpt, step 6)." in html


def test_numbers_of_different_rows_are_said_not_to_compare(tmp_path):
    folders = [write_run(tmp_path / name) for name in "ab"]
    for folder, data in zip(folders, ("one.jsonl", "two.jsonl"), strict=True):
        about = dataclasses.replace(measured(0.5), data=data, fingerprint=data, rows=3)
        add_evaluation(folder / "metrics.json", about)
    html = build_report(read_runs(folders)).html
    assert "numbers are of different rows and don&#39;t compare (a: one.jsonl, 3 rows; b: two.jsonl" in html

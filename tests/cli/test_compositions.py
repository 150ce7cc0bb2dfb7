"""Objectives composed in YAML, as the page about them shows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from tests.runs import NO_TEXTS, scored_rows, write_rows

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods" / "compose.md"


def blocks():
    return [block.split("```")[0] for block in PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]]


def fit(prefopt, tmp_path, tiny_model, settings):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    (tmp_path / "objective.yaml").write_text(settings, encoding="utf-8")
    files = (ROOT / "configs" / "base.yaml", "objective.yaml", ROOT / "configs" / "hardware" / "cpu.yaml")
    axes = [part for file in files for part in ("-c", file)]
    quick = ["--trainer.log_every_n_steps", 1, "--run_dir", "run", "--data.held_out", 2]
    return prefopt.run(
        "fit", *axes, *quick, *NO_TEXTS, "--data.train", rows, "--model.init_args.policy.name", tiny_model
    )


@pytest.mark.parametrize(
    ("number", "logged"), [(0, {"nll"}), (1, {"preference_loss", "calibration_loss"})], ids=["Compose", "Sum"]
)
def test_a_composition_trains_and_logs_its_parts(prefopt, tmp_path, tiny_model, number, logged):
    code, printed = fit(prefopt, tmp_path, tiny_model, blocks()[number])
    assert code == 0, printed
    with Path("run/metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    for stage in ("train", "val"):
        assert {f"{stage}/{name}" for name in (*logged, "loss", "accuracy")} <= columns


def test_parts_that_contradict_each_other_are_refused_in_a_sentence(prefopt, tmp_path, tiny_model):
    settings = yaml.safe_load(blocks()[0])
    parts = settings["model"]["init_args"]["objective"]["init_args"]
    parts["structure"]["class_path"] = "pl_prefopt.objectives.MergedPairs"
    parts["weights"] = [{"class_path": "pl_prefopt.objectives.ConstantWeight", "init_args": {"value": 2.0}}]
    code, printed = fit(prefopt, tmp_path, tiny_model, yaml.safe_dump(settings))
    assert code == 2
    assert "MergedPairs merges margins before the link" in printed
    assert "Traceback" not in printed

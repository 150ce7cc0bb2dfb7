"""The shipped configurations of MRPO and Sr-DPO, from the command line to the files of a test run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.runs import NO_TEXTS, metrics_of, scored_rows, write_rows
from tests.support import save_tiny_model

CONFIGS = Path(__file__).parents[2] / "configs"
SEVERAL = ("mrpo", "multi_dpo", "sr_mrpo")


@pytest.mark.parametrize("method", [*SEVERAL, "sr_ipo"])
def test_a_shipped_method_trains_and_tests(prefopt, tmp_path, tiny_model, method):
    second = save_tiny_model(tmp_path / "second", seed=3)
    named = ["--references.members.init_args.model.name", second] if method in SEVERAL else []
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    files = (CONFIGS / "base.yaml", CONFIGS / "methods" / f"{method}.yaml", CONFIGS / "hardware" / "cpu.yaml")
    axes = [part for file in files for part in ("-c", file)]
    stages = ["--data.train", rows, "--data.test", rows, "--data.held_out", 2]
    prefopt(
        "fit",
        *axes,
        *stages,
        *named,
        *NO_TEXTS,
        "--model.init_args.policy.name",
        tiny_model,
        "--run_dir",
        "run",
    )
    prefopt("test", "-c", "run/config.yaml", "--ckpt_path", "last")
    validated, tested = metrics_of("run"), metrics_of("run", "test")
    assert tested["test/margin_low"] <= tested["test/margin"] <= tested["test/margin_high"]
    assert ("val/alpha_1" in validated) == (method in SEVERAL)
    assert ("test/accuracy_quality_high" in tested) == method.startswith("sr_")


def test_the_placeholder_of_the_second_reference_is_refused_with_its_name(prefopt, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    files = (CONFIGS / "base.yaml", CONFIGS / "methods" / "mrpo.yaml", CONFIGS / "hardware" / "cpu.yaml")
    axes = [part for file in files for part in ("-c", file)]
    said = prefopt.fails(
        "fit", *axes, "--data.train", rows, "--model.init_args.policy.name", tiny_model, "--run_dir", "run"
    )
    assert "SET-ME/second-reference" in said


def test_a_module_takes_its_family_only(prefopt, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    config = yaml.safe_load((CONFIGS / "methods" / "sr_dpo.yaml").read_text())
    config["model"]["class_path"] = "pl_prefopt.modules.MRPOModule"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    said = prefopt.fails("fit", "-c", CONFIGS / "base.yaml", "-c", "wrong.yaml", "--data.train", rows)
    assert "SrDPO" in said

"""The study of MRPO and Multi-DPO at smoke size."""

from __future__ import annotations

import math

import pytest
import yaml

from tests.scripts.study_scripts import (
    STUDIES,
    TINY,
    load_script,
    prompts,
    read_table,
    write_graded_rows,
)

pytest.importorskip("matplotlib", reason="the study's figure needs the `studies` extra")
CONFIG = yaml.safe_load((STUDIES / "multi_reference.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def given(tiny_model, tmp_path):
    """Return the arguments of a study of DPO, Multi-DPO and MRPO at two ε_max; responses are cut."""
    write_graded_rows(tmp_path / "rows.jsonl")
    changes = {
        "model": str(tiny_model),
        "data": str(tmp_path / "rows.jsonl"),
        "max_response_length": 4,
        "learning_rate": 0.05,  # the methods must come apart in two steps
        "epsilon_max": [0, 1.0e6],
        "published": 1.0e6,
        "methods": {name: CONFIG["methods"][name] for name in ("DPO", "Multi-DPO", "MRPO")},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONFIG | TINY | changes, sort_keys=False))
    return ["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]


def test_the_study_writes_its_results_and_goes_on_where_it_stopped(given, tmp_path, capsys):
    script, out = load_script("multi_reference"), tmp_path / "out"
    with pytest.raises(SystemExit, match="nothing to report"):
        script.main([*given, "--report"])
    script.main(given)
    table = read_table(out / "table.csv")
    assert list(table) == ["reference 2", "DPO", "Multi-DPO", "MRPO-0", "MRPO-1e+06"]
    mean = {name: float(row["log_ratio_margin_0 mean"]) for name, row in table.items()}
    assert mean["MRPO-0"] == pytest.approx(mean["DPO"], abs=1e-3)
    assert mean["MRPO-1e+06"] != pytest.approx(mean["DPO"], abs=1e-3)
    assert float(table["MRPO-1e+06"]["clip_rate mean"]) == 0
    assert float(table["DPO"]["loss_first mean"]) == pytest.approx(math.log(2), abs=1e-4)
    assert float(table["MRPO-0"]["not_finite mean"]) == 0
    assert table["MRPO-0"]["runs"] == "2"
    assert not table["DPO"]["alpha_1 mean"]
    answers = (out / "answers.md").read_text(encoding="utf-8")
    assert "MRPO's accuracy beats DPO's (MRPO − DPO) | 2 |" in answers
    assert "ε_max = 0 is DPO" in answers
    assert "uniform" not in answers, "a question about a method that was not run"
    assert "<svg" in (out / "figure.svg").read_text(encoding="utf-8")
    assert not prompts(out, "train") & prompts(out, "held_out")
    assert not prompts(out, "reference") & (prompts(out, "train") | prompts(out, "held_out"))
    scored = sorted(path.name.rsplit("-", 1)[0] for path in out.glob("cache/references/*/*.safetensors"))
    assert scored == ["test-plain", "test-plain", "train-plain", "train-plain", "train-plain"]

    (out / "runs" / "MRPO-0-1" / "metrics.json").unlink()
    capsys.readouterr()
    script.main(given)
    printed = capsys.readouterr().out
    assert "MRPO-0, seed 1" in printed
    assert "MRPO-0, seed 0" not in printed
    assert "DPO, seed" not in printed


def test_the_real_settings_are_those_asked_for():
    script = load_script("multi_reference")
    study = script.Study(CONFIG, None)
    methods = script.expand(study)
    assert len(methods) == 10
    assert len(study["seeds"]) == 5
    objectives = {name: script.shared.build_objective(described) for name, described in methods.items()}
    assert [objectives[name].reference.clip.epsilon_max for name in methods if name[-1].isdigit()] == [
        0, 0.01, 0.1, 1, 1e6,
    ]  # fmt: skip
    assert script.name(study["published"]) in methods


def test_a_run_that_diverged_is_reported_and_not_judged():
    script = load_script("multi_reference")
    course = script.LossCourse()
    course.losses = [0.7, 3.0, math.nan, math.inf]
    stability = course.summary()
    assert stability == {
        "not_finite": 2.0, "loss_first": 0.7, "loss_last": 3.0, "loss_min": 0.7, "loss_max": 3.0,
    }  # fmt: skip
    fine = {"seed": 0, "accuracy": 0.6, "log_ratio_margin_0": 1.0, "own_accuracy": 0.6}
    results = {"DPO": [fine, fine | {"seed": 1}], "MRPO-0.1": [fine | {"seed": 1}, {"seed": 0, **stability}]}
    second = {"accuracy": 0.7, "ranking_accuracy": 0.5, "untuned_ranking_accuracy": 0.5}
    said = script.shared.verdicts(script.questions(script.Study(CONFIG, None), second, results))
    assert "MRPO's accuracy beats DPO's (MRPO − DPO) | 1 | +0.0000 | neither |" in said
    assert "reference 2 is stronger by log-ratio (accuracy − ½) | 1 | +0.2000 | yes |" in said


def test_the_middle_is_compared_with_the_ends():
    script = load_script("multi_reference")
    study = script.Study({"epsilon_max": [1.0e6, 0, 0.1, 1]}, None)
    accuracies = {"MRPO-0": 0.5, "MRPO-0.1": 0.6, "MRPO-1": 0.8, "MRPO-1e+06": 0.7}
    results = {name: [{"seed": 3, "accuracy": accuracy}] for name, accuracy in accuracies.items()}
    assert script.hump(study, results) == pytest.approx([0.1])

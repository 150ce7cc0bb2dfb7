"""The study of Sr-DPO and Sr-IPO at smoke size."""

from __future__ import annotations

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
CONFIG = yaml.safe_load((STUDIES / "self_refined.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def given(tiny_model, tmp_path):
    """Return the arguments of a study of one family at two strengths."""
    write_graded_rows(tmp_path / "rows.jsonl")
    changes = {"model": str(tiny_model), "data": str(tmp_path / "rows.jsonl"), "strengths": [0, 1]}
    changes["max_prompt_length"] = 256  # the quality text alone has 164 tokens of the tiny tokeniser
    changes["families"] = {"DPO": CONFIG["families"]["DPO"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONFIG | TINY | changes, sort_keys=False))
    return ["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]


def test_the_study_writes_its_results_and_goes_on_where_it_stopped(given, tmp_path, capsys):
    script, out = load_script("self_refined"), tmp_path / "out"
    script.main(given)
    table = read_table(out / "table.csv")
    assert list(table) == ["DPO", "Sr-DPO-1"]
    assert table["Sr-DPO-1"]["runs"] == "2"
    assert table["DPO"]["log_ratio_margin_0 mean"] != table["Sr-DPO-1"]["log_ratio_margin_0 mean"]
    low, mean, high = (float(table["DPO"][f"kendall{end} mean"]) for end in ("_low", "", "_high"))
    assert low <= mean <= high
    assert 0 <= float(table["DPO"]["accuracy_quality mean"]) <= 1
    answers = (out / "answers.md").read_text(encoding="utf-8")
    assert "DPO: Kendall rises with λ (slope) | 2 |" in answers
    assert "DPO: the marginal falls with λ (−slope) | 2 |" in answers
    assert "<svg" in (out / "figure.svg").read_text(encoding="utf-8")
    assert not prompts(out, "train") & prompts(out, "held_out")
    scored = sorted(path.name.rsplit("-", 1)[0] for path in out.glob("cache/references/*/*.safetensors"))
    assert scored == ["test-plain", "test-quality", "train-plain", "train-quality"]

    before = (out / "table.md").read_text(encoding="utf-8")
    (out / "runs" / "Sr-DPO-1-0" / "metrics.json").unlink()
    capsys.readouterr()
    script.main([*given, "--report"])
    assert read_table(out / "table.csv")["Sr-DPO-1"]["runs"] == "1"
    assert "DPO: Kendall rises with λ (slope) | 1 |" in (out / "answers.md").read_text(encoding="utf-8")
    script.main(given)
    printed = capsys.readouterr().out
    assert "Sr-DPO-1, seed 0" in printed
    assert "Sr-DPO-1, seed 1" not in printed
    assert (out / "table.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("family", ["DPO", "IPO"])
def test_strength_0_is_the_family_s_namesake(given, family):
    script = load_script("self_refined")
    study, _ = script.shared.parse(script.__file__, script.__doc__, given)
    script.shared.split_rows(study)
    plain = {"class_path": f"pl_prefopt.objectives.{family}", "init_args": {"beta": 0.1}}
    refined = CONFIG["families"][family]
    refined = {**refined, "init_args": {**refined["init_args"], "strength": 0}}
    found = [script.train(study, described, seed=0) for described in (plain, refined)]
    for metric in ("accuracy", "log_ratio_margin_0", "pearson", "kendall_low"):
        assert found[0][metric] == pytest.approx(found[1][metric], abs=1e-5)
    assert "accuracy_quality" not in found[0]


def test_the_real_settings_are_those_asked_for():
    script = load_script("self_refined")
    study = script.Study(CONFIG, None)
    methods = script.expand(study)
    assert [method for method in methods if "DPO" in method] == [
        "DPO", "Sr-DPO-0.1", "Sr-DPO-0.3", "Sr-DPO-0.5", "Sr-DPO-1",
    ]  # fmt: skip
    assert len(methods) == 10
    for name, described in methods.items():
        objective = script.shared.build_objective(described)
        assert type(objective).__name__ == ("SrDPO" if "DPO" in name else "SrIPO")
        assert objective.strength == (float(name.split("-")[-1]) if "-" in name else 0)


def test_equal_accuracy_is_a_matter_of_each_seed():
    script = load_script("self_refined")
    study = script.Study({"strengths": [0, 0.5, 1], "equal_accuracy": 0.02, "families": {"DPO": {}}}, None)

    def runs(*accuracies_and_marginals):
        return [
            {"seed": seed, "accuracy": accuracy, "log_ratio_margin_0": marginal}
            for seed, (accuracy, marginal) in enumerate(accuracies_and_marginals)
        ]

    results = {
        "DPO": runs((0.7, 4.0), (0.7, 4.0), (0.7, 4.0)),
        "Sr-DPO-0.5": runs((0.7, 3.0), (0.69, 3.0), (0.5, 3.0)),
        "Sr-DPO-1": runs((0.6, 0.0), (0.71, 1.0), (0.9, 0.0)),
    }
    assert script.at_equal_accuracy(study, results, "DPO", "log_ratio_margin_0") == pytest.approx([-1, -2])
    assert script.slopes(study, results, "DPO", "log_ratio_margin_0") == pytest.approx([-4, -3, -4])
    assert script.slopes(study, results, "DPO", "kendall") == []
    said = script.shared.verdicts(script.questions(study, results))
    assert "the marginal is lower (λ = 0 − mean) | 2 | +1.5000 ± 0.7071 | yes |" in said
    assert "Kendall" not in said

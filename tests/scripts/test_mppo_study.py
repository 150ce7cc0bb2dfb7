"""The MPPO study at smoke size: it writes all its results and goes on where it stopped."""

from __future__ import annotations

import csv
import json
from functools import partial

import pytest
import yaml

from tests.scripts import study_scripts

SCRIPT = study_scripts.STUDIES / "mppo.py"
load_script = partial(study_scripts.load_script, "mppo")
pytest.importorskip("matplotlib", reason="the study's figure needs the `studies` extra")


@pytest.fixture
def study(tiny_model, tmp_path):
    """A configuration of three methods on a handful of rows."""
    rows = [
        {
            "prompt": f"Say {number}.",
            "responses": [f"It is {number}.", "Maybe.", "No!", "I cannot."][: 4 - (number % 3 == 0)],
            "scores": [9.0, 5.0, 2.5, 1.0][: 4 - (number % 3 == 0)],
        }
        for number in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text(encoding="utf-8"))
    methods = ("Point-CE", "Pair-MCM", "DPO")
    changes = {
        "model": str(tiny_model),
        "data": str(tmp_path / "rows.jsonl"),
        "start_prompts": 2,
        "train_prompts": 4,
        "held_out_prompts": 3,
        "seeds": [0, 1],
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
        "methods": {name: whole["methods"][name] for name in methods},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(whole | changes, sort_keys=False))
    return ["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]


def test_the_study_writes_its_results_and_goes_on_where_it_stopped(study, tmp_path, capsys):
    script, out = load_script(), tmp_path / "out"
    script.main(study)
    with (out / "table.csv").open(encoding="utf-8") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert list(table) == ["start", "Point-CE", "Pair-MCM", "DPO"]
    assert table["DPO"]["runs"] == "2"
    assert 0 < float(table["Pair-MCM"]["likelihood_best mean"]) < 1
    assert float(table["Pair-MCM"]["likelihood_best sd"]) > 0
    assert (out / "answers.md").read_text(encoding="utf-8").count("\n") == 6
    assert "<svg" in (out / "figure.svg").read_text(encoding="utf-8")

    prompts = [
        {json.loads(line)["prompt"] for line in (out / "rows" / f"{name}.jsonl").open(encoding="utf-8")}
        for name in ("start", "train", "held_out")
    ]
    assert not prompts[0] & prompts[1]
    assert not prompts[2] & (prompts[0] | prompts[1])

    before = (out / "table.md").read_text(encoding="utf-8")
    (out / "runs" / "Pair-MCM-1" / "metrics.json").unlink()
    load_script().main([*study, "--report"])
    with (out / "table.csv").open(encoding="utf-8") as file:
        assert {row["method"]: row["runs"] for row in csv.DictReader(file)}["Pair-MCM"] == "1"
    capsys.readouterr()
    load_script().main(study)
    printed = capsys.readouterr().out
    assert "Pair-MCM, seed 1" in printed
    assert "Pair-MCM, seed 0" not in printed
    assert (out / "table.md").read_text(encoding="utf-8") == before


def test_verdicts_need_all_seeds_to_agree():
    script = load_script()
    start = dict.fromkeys((*script.RANKS, "likelihood_gap"), 0.5)
    up, down = ({name: value for name in start} for value in (0.6, 0.4))
    said = script.answers(start, {"Point-CE": [up, up]})
    assert "raises p of all ranks (least change) | 2 | +0.1000 ± 0.0000 | yes |" in said
    assert "shrinks the gap (start − end) | 2 | -0.1000 ± 0.0000 | no |" in said
    assert "the seeds disagree" in script.answers(start, {"Point-CE": [up, down]})

"""The study of all objectives at smoke size."""

from __future__ import annotations

import csv

import yaml

from scripts.site import catalogue
from tests.scripts.study_scripts import STUDIES, TINY, load_script, write_graded_rows

CONFIG = yaml.safe_load((STUDIES / "objectives.yaml").read_text(encoding="utf-8"))


def test_the_study_measures_methods_for_the_catalogue(tiny_model, tmp_path, monkeypatch):
    write_graded_rows(tmp_path / "rows.jsonl")
    rows = {"model": str(tiny_model), "data": str(tmp_path / "rows.jsonl"), "methods": ["kto", "simpo"]}
    settings = CONFIG | TINY | rows | {"seeds": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    script = load_script("objectives")
    script.main(["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")])
    with (tmp_path / "out" / "objectives.csv").open(encoding="utf-8", newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["kto", "simpo"]
    assert all(0 <= float(line["ranking_accuracy"]) <= 1 for line in lines.values())
    # Their rewards differ, the policies' own ranking of the same rows is measured alike.
    assert set(catalogue.MEASURES) <= set(lines["kto"])
    monkeypatch.setattr(catalogue, "MEASURED", tmp_path / "out" / "objectives.csv")
    accuracy = float(lines["simpo"]["ranking_accuracy"])
    assert f"| `simpo` | 1 | {accuracy:.3f} |" in catalogue.page()
    assert "| `dpo` | not measured |" in catalogue.page()


def test_the_study_names_files_that_exist():
    assert {path.stem for path in (STUDIES.parents[1] / "configs/methods").glob("*.yaml")} >= set(
        CONFIG["methods"]
    )

"""The study of all objectives at smoke size."""

from __future__ import annotations

import csv

import pytest
import yaml

from scripts.site import catalogue
from tests.scripts.study_scripts import STUDIES, TINY, load_script, write_graded_rows

CONFIG = yaml.safe_load((STUDIES / "objectives.yaml").read_text(encoding="utf-8"))
METHODS = ["simpo", "mrpo", "bradley_terry", "rc_dpo"]
TRL = [
    "dpo",
    "hinge",
    "ipo_mean",
    "exo",
    "nca",
    "rdpo",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "norm_dpo",
]


def test_the_study_measures_methods_for_the_catalogue(tiny_model, tmp_path, monkeypatch, capsys):
    write_graded_rows(tmp_path / "rows.jsonl")
    rows = {"model": str(tiny_model), "data": str(tmp_path / "rows.jsonl"), "methods": METHODS}
    settings = CONFIG | TINY | rows | {"seeds": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    script = load_script("objectives")
    given = ["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="--only names dpo, but the methods are simpo, mrpo"):
        script.main([*given, "--only", "dpo"])
    script.main([*given, "--only", "simpo", "mrpo"])
    assert list(measured(tmp_path / "out", monkeypatch)) == ["mrpo", "simpo"]
    # The second reference is another model than the first.
    assert (tmp_path / "out" / "second_reference" / "adapter_config.json").is_file()
    script.main([*given, "--only", "mrpo", "bradley_terry", "rc_dpo"])
    assert capsys.readouterr().out.count("mrpo, seed 0") == 1, "a finished run is read"
    (tmp_path / "out" / "objectives.csv").unlink()
    (tmp_path / "out" / "runs" / "mrpo-0" / "metrics.json").unlink()
    script.main([*given, "--report"])

    lines = measured(tmp_path / "out", monkeypatch)
    assert list(lines) == ["bradley_terry", "rc_dpo", "simpo"]
    assert set(catalogue.MEASURES) <= set(lines["simpo"])
    assert all(0 <= float(line["accuracy"]) <= 1 for line in lines.values())
    page, accuracy = catalogue.page(), float(lines["simpo"]["ranking_accuracy"])
    assert f"| `simpo` | 1 | {accuracy:.3f} |" in page
    missing = page.partition("Not measured: ")[2]
    assert "`mrpo`" in missing
    assert "`simpo`" not in missing


def measured(out, monkeypatch):
    """The lines of the study's results by method, which the catalogue then shows."""
    monkeypatch.setattr(catalogue, "MEASURED", out / "objectives.csv")
    with (out / "objectives.csv").open(encoding="utf-8", newline="") as file:
        return {line["method"]: line for line in csv.DictReader(file)}


def test_the_study_has_a_method_of_each_page_and_each_loss_of_trl():
    pages = {
        file.name: catalogue.importlib.import_module(catalogue.entries()[name].__module__).PAGE
        for name, files in catalogue.methods().items()
        for file in files
    }
    assert set(CONFIG["methods"]) <= pages.keys()
    assert set(TRL) <= set(CONFIG["methods"])
    assert {pages[name] for name in CONFIG["methods"]} == set(pages.values())

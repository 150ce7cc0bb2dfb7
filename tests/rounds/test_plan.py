"""The settings of rounds: the files of configs/rounds, stages, and where policies and references are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pl_prefopt.cli.config_diagnostics import check_command
from pl_prefopt.cli.config_files import with_paths
from pl_prefopt.cli.rounds import read_rounds
from pl_prefopt.errors import ConfigError
from pl_prefopt.rounds import fit_settings, stage_named, stages_of
from pl_prefopt.rounds.plan import merged_settings

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "rounds").glob("*.yaml"))


def rounds(**changes):
    raw = yaml.safe_load((ROOT / "configs/rounds/online_dpo.yaml").read_text())
    return read_rounds("online_dpo.yaml", {**raw, **changes})


def adapter(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_files_are_rounds_whose_fit_is_accepted(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = read_rounds(str(file), yaml.safe_load(file.read_text(encoding="utf-8")))
    settings = replace(read, out=str(tmp_path / "out"), policy=str(tmp_path))
    (tmp_path / "out/round-1/select/rows").mkdir(parents=True)
    (tmp_path / "out/round-1/select/rows/part-00000.jsonl").write_text("{}\n")
    made = merged_settings(settings.fit.settings, fit_settings(settings, 1))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(made))
    configs = [word for name in (*settings.fit.config, "fit.yaml") for word in ("-c", name)]
    check_command("fit", with_paths(["fit", *configs])[1:])


def test_references_are_the_policies_that_the_settings_name(tmp_path):
    out = str(tmp_path)
    settings = rounds(out=out, policy="base", references=["start", "initial", "average"], average=0.5)
    initial = {"class_path": "pl_prefopt.references.InitialPolicy"}
    first = fit_settings(settings, 1)
    assert first["model"]["init_args"]["policy"] == {"name": "base"}
    assert first["references"]["members"] == [initial] * 3
    trained, average = adapter(tmp_path / "round-1/export"), adapter(tmp_path / "round-1/average")
    second = fit_settings(settings, 2)
    assert second["model"]["init_args"]["policy"] == {"name": "base", "adapter": trained, "lora": None}
    start, base, mean = second["references"]["members"]
    assert start == initial
    assert base["init_args"]["model"] == {"name": "base"}
    assert mean["init_args"]["model"] == {"name": "base", "adapter": average}
    anew = fit_settings(replace(settings, start="initial", references=["start", "previous"]), 2)
    assert anew["model"]["init_args"]["policy"] == {"name": "base"}
    assert anew["references"]["members"][0] == initial
    assert anew["references"]["members"][1]["init_args"]["model"]["adapter"] == trained


def test_stages_and_settings_that_cannot_work():
    settings = rounds(rounds=1)
    assert [str(stage) for stage in stages_of(settings)] == [
        "0/held_out",
        "0/judge",
        "0/measure",
        "1/sample",
        "1/label",
        "1/select",
        "1/fit",
        "1/export",
        "1/held_out",
        "1/judge",
        "1/measure",
    ]
    with pytest.raises(ConfigError, match="got '1/fitt'; did you mean '1/fit'"):
        stage_named("1/fitt", settings)
    for changes, said in (
        ({"rounds": 0}, "`rounds` to be at least 1"),
        ({"references": ["average"]}, "needs the setting `average`"),
        ({"replay": 2.0}, "a share from 0 to 1"),
        ({"momentum": 0.3, "start": "initial"}, "set `start: previous`"),
        (
            {"select": {"class_path": "pl_prefopt.rounds.SoftPairs", "init_args": {"temperature": 0}}},
            "above 0",
        ),
        ({"fit": {"config": ["base"], "settings": 3}}, "`fit.settings` to be a section"),
        ({"unknown": 1}, "unknown"),
    ):
        with pytest.raises(ConfigError, match=said):
            rounds(**changes)

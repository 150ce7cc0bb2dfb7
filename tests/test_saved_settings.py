"""A run's settings work wherever the run and its project are moved, and whatever the working directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pl_prefopt.errors import ConfigError
from pl_prefopt.saved_settings import is_saved, portable, read_saved


def settings(**changes):
    """What a command ran with, as the parser dumps it."""
    member = {"class_path": "pl_prefopt.references.NamedAdapter", "init_args": {"folder": "adapter"}}
    return {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "default_root_dir": None},
        "model": {"init_args": {"policy": {"name": "models/tiny"}, "schedule": {"name": "cosine"}}},
        "data": {"train": {"path": "rows.jsonl"}, "val": "owner/rows", "cache_dir": ".cache"},
        "references": {"members": [member]},
        "best": {"dirpath": None},
        "last": {"dirpath": "runs/x/elsewhere"},
        "ckpt_path": None,
        "run_dir": "runs/x",
        **changes,
    }


def test_sources_of_all_kinds_are_found_from_another_folder(tmp_path, monkeypatch):
    there = tmp_path / "there"
    there.mkdir()
    for name in ("a.jsonl", "b.jsonl", "c1.parquet"):
        (there / name).touch()
    monkeypatch.chdir(there)
    data = {"train": ["a.jsonl", {"path": "b.jsonl"}], "val": {"helpful": "a.jsonl"}, "test": "c*.parquet"}
    config = save(tmp_path / "there" / "runs" / "x", data=data)
    monkeypatch.chdir(tmp_path)
    found = read_saved(config)["data"]
    assert found == {
        "train": [str(there / "a.jsonl"), {"path": str(there / "b.jsonl")}],
        "val": {"helpful": str(there / "a.jsonl")},
        "test": str(there / "c*.parquet"),
    }


def save(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(portable(settings(**changes), folder), sort_keys=False)
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


def make_inputs(folder):
    (folder / "models" / "tiny").mkdir(parents=True)
    for name in ("adapter", "cosine", "cpu"):
        (folder / name).mkdir()
    (folder / "rows.jsonl").touch()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with data and models, in which a run was made."""
    folder = tmp_path / "project"
    make_inputs(folder)
    monkeypatch.chdir(folder)
    save(folder / "runs" / "x")
    return folder


def inputs(found):
    (member,) = found["references"]["members"]
    name = found["model"]["init_args"]["policy"]["name"]
    return name, found["data"]["train"]["path"], member["init_args"]["folder"]


def assert_inputs_of(project, found):
    assert inputs(found) == tuple(str(project / name) for name in ("models/tiny", "rows.jsonl", "adapter"))
    # Words and hub names are no paths, whatever is in the folder.
    assert found["model"]["init_args"]["schedule"]["name"] == "cosine"
    assert found["trainer"]["accelerator"] == "cpu"
    assert found["data"]["val"] == "owner/rows"


def test_where_the_run_was_made_paths_stay_as_typed(project):
    found = read_saved(Path("runs/x/config.yaml"))
    assert found == settings()


def test_from_elsewhere_inputs_are_the_runs_own(project, tmp_path, monkeypatch):
    other = tmp_path / "other"
    make_inputs(other)
    monkeypatch.chdir(other)
    found = read_saved(Path("../project/runs/x/config.yaml"))
    assert_inputs_of(project, found)
    assert found["run_dir"] == "../project/runs/x"
    assert found["last"]["dirpath"] == "../project/runs/x/elsewhere"


@pytest.mark.parametrize("place", ["runs/renamed", "archive/2026/x", "../x"])
def test_a_run_may_be_moved(project, monkeypatch, place):
    (project / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.move("runs/x", place)
    found = read_saved(Path(place) / "config.yaml")
    assert inputs(found) == ("models/tiny", "rows.jsonl", "adapter")
    assert (found["run_dir"], found["last"]["dirpath"]) == (place, f"{place}/elsewhere")
    monkeypatch.chdir("/")
    assert_inputs_of(project, read_saved(project / place / "config.yaml"))


def test_the_folder_of_runs_may_be_a_link(project, tmp_path, monkeypatch):
    shutil.rmtree("runs")
    (tmp_path / "a" / "disk").mkdir(parents=True)
    Path("runs").symlink_to(tmp_path / "a" / "disk")
    save(project / "runs" / "x")
    monkeypatch.chdir("/")
    assert_inputs_of(project, read_saved(project / "runs" / "x" / "config.yaml"))


@pytest.mark.parametrize("gone", [False, True], ids=["copied", "moved"])
def test_a_project_may_be_copied_or_moved_as_a_whole(project, tmp_path, monkeypatch, gone):
    copy = tmp_path / "copy"
    monkeypatch.chdir("/")
    shutil.copytree(project, copy)
    if gone:
        shutil.rmtree(project)
    found = read_saved(copy / "runs" / "x" / "config.yaml")
    assert_inputs_of(copy, found)
    assert found["run_dir"] == str(copy / "runs" / "x")


def test_an_input_that_is_nowhere_stays_as_typed(project):
    shutil.rmtree("models")
    assert inputs(read_saved(Path("runs/x/config.yaml")))[0] == "models/tiny"


def test_checkpoints_go_with_the_run_and_those_of_other_runs_do_not(project):
    own, others = "runs/x/checkpoints/last.ckpt", "runs/y/checkpoints/last.ckpt"
    resumed = save(project / "runs/x", ckpt_path=own)
    assert read_saved(resumed)["ckpt_path"] is None  # resuming is no part of how to repeat a run
    from_another = save(project / "runs/x", ckpt_path=others)
    assert read_saved(from_another)["ckpt_path"] == str(project / others)
    evaluation = save(project / "runs/x/validate", ckpt_path=own)
    shutil.move("runs/x", "runs/renamed")
    found = read_saved(Path("runs/renamed/validate") / evaluation.name)
    assert (found["run_dir"], found["ckpt_path"]) == ("runs/renamed", "runs/renamed/checkpoints/last.ckpt")


@pytest.mark.parametrize("place", ["runs/x", "runs/copy", "runs/copy/validate"])
def test_settings_of_an_earlier_version_still_work(project, monkeypatch, place):
    folder = project / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(ckpt_path="runs/x/checkpoints/last.ckpt")))
    monkeypatch.chdir("/")
    found = read_saved(folder / "config.yaml")
    run = folder if folder.name != "validate" else folder.parent
    assert_inputs_of(project, found)
    assert found["run_dir"] == str(run)
    assert found["last"]["dirpath"] == str(run / "elsewhere")
    assert found["ckpt_path"] == str(run / "checkpoints" / "last.ckpt")


def test_a_file_that_was_cut_off_anywhere_is_refused(project):
    file = Path("runs/x/config.yaml")
    whole = file.read_bytes()
    for length in range(len(whole.rstrip())):
        file.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"runs/x/config\.yaml is damaged"):
            read_saved(file)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"\x00", b"3", b"- 1"])
def test_what_is_no_settings_is_refused(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        read_saved(tmp_path / "config.yaml")


def test_only_the_settings_of_a_run_are_taken_for_them(project):
    assert is_saved(Path("runs/x/config.yaml"))
    own = Path("config.yaml")
    own.write_text("run_dir: runs/mine\ndata: {train: rows.jsonl}\n")
    assert not is_saved(own)
    assert not is_saved(Path("missing/config.yaml"))
    for made in (".lock", "checkpoints/last.ckpt"):  # in the place of a run's, whatever is left of it
        run = project / "runs" / made[:5]
        (run / made).parent.mkdir(parents=True)
        (run / made).touch()
        (run / "config.yaml").touch()
        assert is_saved(run / "config.yaml")

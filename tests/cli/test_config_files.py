"""Configurations by path and by name, and what is said of one that is nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pl_prefopt.cli.config_files import example_rows, find, names, with_paths
from pl_prefopt.errors import ConfigError

ROOT = Path(__file__).parents[2]
DPO = str(ROOT / "configs/methods/dpo.yaml")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_file_has_a_name_and_says_in_a_sentence_what_it_is():
    files = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
    assert sorted(names()) == sorted(path.with_suffix("").as_posix() for path in files)
    for path in names().values():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), path
        assert first.endswith((".", '".')), path


GIVEN = {
    "a name": ["-c", "methods/dpo"],
    "a name behind the short option": ["-cmethods/dpo"],
    "a name behind the short option's equals sign": ["-c=methods/dpo"],
    "a name behind the long option": ["--config", "methods/dpo"],
    "a name behind the long option's equals sign": ["--config=methods/dpo"],
    "a path": ["-c", DPO],
}


@pytest.mark.parametrize("how", GIVEN)
def test_a_configuration_may_be_given_in_any_of_these_ways(how):
    words = ["fit", *GIVEN[how], "--data.train", "-"]
    assert with_paths(words) == ["fit", "--config", DPO, "--data.train", "-"]


def test_other_arguments_stay_as_they_are():
    words = [
        "fit",
        "--run_dir=x",
        "--print_config",
        "--trainer.max_epochs",
        "-1",
        "--configure=x",
        "-h",
        "-c",
    ]
    assert with_paths(words) == words
    assert with_paths(["fit", "-c", "{seed_everything: 3}"])[1:] == ["--config", "{seed_everything: 3}"]


def test_a_file_that_exists_comes_before_a_name():
    Path("methods").mkdir()
    assert find("methods/dpo") == DPO  # a folder of the group's name hides nothing
    Path("methods/dpo").write_text("seed_everything: 1\n")
    assert find("methods/dpo") == "methods/dpo"


MISSING = {
    "methods/dpoo": "there is no configuration 'methods/dpoo': it is neither a file nor listed by "
    "`prefopt configs`; did you mean 'methods/dpo'?",
    "nothing.yaml": "there is no configuration 'nothing.yaml': it is neither a file nor listed by "
    "`prefopt configs`.",
    "own/mine.yml": "there is no configuration 'own/mine.yml': it is neither a file nor listed by "
    "`prefopt configs`; did you mean 'own/mine.yaml'?",
    "configs/methods/dpo.yaml": "there is no file configs/methods/dpo.yaml in {here}; the one that comes "
    "with prefopt is `-c methods/dpo`.",
    "dpo": "there is no file dpo in {here}; the one that comes with prefopt is `-c methods/dpo`.",
    "": "expected the name of a configuration or a file, got nothing.",
    "own": "expected a configuration file, but own is a folder; name a file in it.",
    "runs/first": "expected a configuration file, but runs/first is a folder; name runs/first/config.yaml.",
}


@pytest.mark.parametrize("wanted", MISSING)
def test_a_missing_file_is_named_with_what_may_have_been_meant(wanted):
    for file in ("own/mine.yaml", "runs/first/config.yaml"):
        Path(file).parent.mkdir(parents=True)
        Path(file).touch()
    with pytest.raises(ConfigError) as error:
        find(wanted)
    assert str(error.value) == MISSING[wanted].format(here=Path.cwd())


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "precompute", "plan"])
def test_every_command_finds_them_in_the_same_place(prefopt, command):
    said = prefopt.fails(command, "-c", "base", "-c", "methods/dpoo", "--data.trian", "x")
    assert said == f"prefopt: {MISSING['methods/dpoo']}\n"


def test_a_missing_file_is_named_before_anything_heavy_is_imported():
    script = (
        "import sys; sys.argv = ['prefopt', 'fit', '-c', 'nothing.yaml']\n"
        "from pl_prefopt.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"prefopt: {MISSING['nothing.yaml']}\n"


def test_a_name_means_what_its_path_means(prefopt):
    by_name = prefopt("fit", "-c", "base", "-c=methods/ipo", "-chardware/cpu", "--print_config")
    paths = [ROOT / "configs" / f"{name}.yaml" for name in ("base", "methods/ipo", "hardware/cpu")]
    by_path = prefopt("fit", *(f"--config={path}" for path in paths), "--print_config")
    assert yaml.safe_load(by_name) == yaml.safe_load(by_path)
    assert "pl_prefopt.objectives.IPO" in by_name


def test_configurations_are_listed_and_printed(prefopt):
    listed = prefopt("configs")
    for name in names():
        assert any(line.startswith(f"{name} ") for line in listed.splitlines()), name
    assert "methods/dpo DPO: Rafailov et al., arXiv 2305.18290." in " ".join(listed.split())
    group = prefopt("configs", "hardware")
    assert "hardware/cpu " in group
    assert "methods/dpo" not in group
    assert prefopt("configs", "methods/dpo") == Path(DPO).read_text(encoding="utf-8")
    assert "did you mean 'hardware/cpu'?" in prefopt.fails("configs", "hardware/cpuu")


def test_the_rows_of_the_demo_are_found_from_any_folder():
    rows = "scripts/demo/preferences_train.jsonl"
    assert example_rows(rows) == str(ROOT / rows)
    for other in ("scripts/demo/none.jsonl", "rows.jsonl", "configs/base.yaml", "scripts/demo"):
        assert example_rows(other) == other
    Path(rows).parent.mkdir(parents=True)
    Path(rows).touch()
    assert example_rows(rows) == rows

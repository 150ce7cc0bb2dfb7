"""What `pip install` puts on a machine: the whole package, its configurations, and the demo's rows."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.wheels import ROOT, build

DEMO = ("preferences_train.jsonl", "preferences_heldout.jsonl")


def expected() -> dict[str, bytes]:
    """The files of the package, by where a wheel has them."""
    source = ROOT / "pl_prefopt"
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "scripts" / "demo" / name for name in DEMO)]
    inside = {
        path: path if path.is_relative_to(source) else source / path.relative_to(ROOT) for path in files
    }
    return {place.relative_to(ROOT).as_posix(): path.read_bytes() for path, place in inside.items()}


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    return {name: content for name, content in found.items() if ".dist-info/" not in name}


def test_a_wheel_holds_the_package_the_configurations_and_the_rows_of_the_demo(tmp_path):
    assert contents(build(tmp_path, "wheel")) == expected()


def test_so_does_one_that_is_built_from_the_source_archive(tmp_path):
    with tarfile.open(build(tmp_path / "sdist", "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert contents(build(tmp_path / "wheel", "wheel", source)) == expected()


@pytest.fixture
def prefopt(installed, tmp_path):
    """The installed command, in an empty folder."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [installed / "bin" / "prefopt", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_an_installed_command_finds_its_configurations_in_an_empty_folder(prefopt, tmp_path):
    """The commands of the documentation run so in tests/docs."""
    assert prefopt("configs", "methods/ipo") == (ROOT / "configs/methods/ipo.yaml").read_text("utf-8")
    printed = prefopt("fit", "-c", "ready/demo", "-c", "methods/ipo", "--print_config")
    assert "class_path: pl_prefopt.objectives.IPO" in printed
    assert not list(tmp_path.iterdir())

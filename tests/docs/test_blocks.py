"""Every command and snippet of the documentation runs, with a tiny model in the place of a real one.

A page's blocks run in their order in one folder that is no checkout. Commands are those of a wheel, each in
a process of its own; the folder has some preference files, the quickstart's model, and a finished run
wherever a page speaks of one.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import pl_prefopt.functional
import pl_prefopt.objectives
import pl_prefopt.pairing
from pl_prefopt.cli.plugins import KINDS
from pl_prefopt.data.formats import to_row
from tests.cli.interrupted import Runs
from tests.docs.pages import ADDING, PAGES, ROOT, Block, blocks, first, name_of, reads_a_column
from tests.runs import pair_rows, rated_rows, scored_rows, write_rows
from tests.support import NO_BROWSER, find_browser

AXES = ["-c", "base", "-c", "methods/dpo", "-c", "hardware/cpu"]
WITH_BLOCKS = [page for page in PAGES if blocks(page)]


def localised(text: str, tiny_model: Path) -> str:
    """Put what is here in the place of what would have to be fetched."""
    text = re.sub(r"HuggingFaceTB/SmolLM2-\w+-Instruct", str(tiny_model), text)
    text = re.sub(r"max_rows: \d+", "max_rows: 8", text)
    return re.sub(r"\.\./shared/data/\S+", "preferences.jsonl", text)


@pytest.fixture(scope="module")
def commands(installed, tiny_model, tmp_path_factory):
    """The installed package's command line, with small models and data in its configurations."""
    packages = tmp_path_factory.mktemp("documented") / "packages"
    shutil.copytree(installed, packages)
    configs = packages / "pl_prefopt" / "configs"
    for file in configs.rglob("*.yaml"):
        file.write_text(localised(file.read_text(encoding="utf-8"), tiny_model), encoding="utf-8")
    base = yaml.safe_load((configs / "base.yaml").read_text())
    base["data"]["train"], base["default_callbacks"] = "preferences.jsonl", False
    (configs / "base.yaml").write_text(yaml.safe_dump(base))
    runs = Runs(tmp_path_factory.mktemp("commands"), packages=packages)
    yield runs
    runs.close()


class Folder:
    """A user's folder, in which the blocks of one page run."""

    def __init__(self, folder: Path, tiny_model: Path, commands: Runs) -> None:
        self.folder, self.tiny_model, self.commands = folder, tiny_model, commands
        self.left_out: list[str] = []
        commands.folder = folder
        for file in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-oldest.txt"):
            (folder / file).symlink_to(ROOT / file)
        (folder / ".cache/models").mkdir(parents=True)
        (folder / ".cache/models/SmolLM2-135M-Instruct").symlink_to(tiny_model)
        for name, rows in {
            "preferences": scored_rows(8),
            "pairs": pair_rows(40),
            "more": scored_rows(2),
            "test": scored_rows(4),
            "theirs": rated_rows(8),
            "rationales": [{**row, "rationale": "It answers."} for row in pair_rows(12)],
            "steps": [{**row, "step_rewards": [[1], [0.5]]} for row in pair_rows(12)],
            "ratings": [{**row, "helpfulness": [2, 1], "honesty": [1, 1]} for row in pair_rows(12)],
        }.items():
            write_rows(folder / f"{name}.jsonl", rows)
        rewards = [
            row | {f"rm_{name}": [1.0, float(n)] for name in "abc"} for n, row in enumerate(pair_rows(20))
        ]
        write_rows(folder / "rewards.jsonl", rewards)
        (folder / "bench").mkdir()
        tasks = [row | {"subset": "math-prm", "id": n} for n, row in enumerate(pair_rows(4))]
        write_rows(folder / "bench" / "rewardbench.jsonl", tasks)
        (folder / "mylab.py").write_text(first(ADDING, "python"))
        (folder / "annotators.py").write_text(reads_a_column("python"))
        (folder / "squared_hinge.yaml").write_text(first(ADDING, "yaml"))

    def prefopt(self, *words: str) -> str:
        status, printed = self.commands(*words)
        assert status == 0, printed
        return printed

    def localised(self, text: str) -> str:
        return localised(text, self.tiny_model)

    def make_runs(self, page: str) -> None:
        """Train the runs that the page speaks of and does not train itself."""
        made = set(
            re.findall(r"(?:--run_dir|^run_dir:|(?:output|run)_dir=)[ \"]?(runs/[\w-]+)", page, re.MULTILINE)
        )
        for folder in sorted(set(re.findall(r"runs/[\w-]+", page)) - made):
            self.prefopt("fit", *AXES, "--data.held_out", "2", "--run_dir", folder)

    def run(self, block: Block) -> None:
        """Run the block."""
        handler = getattr(self, f"run_{block.language}", None)
        assert handler, (
            f"line {block.line}: a block in '{block.language}' can't be run. Give it its language (text for "
            "what a program prints), or say above it why it is not run."
        )
        handler(block)

    def run_bash(self, block: Block) -> None:
        for words in block.commands:
            getattr(self, f"command_{words[0].strip('.') or 'source'}", self.unknown)(*words[1:])

    def unknown(self, *words: str) -> None:
        raise AssertionError(f"tests can't run a command with the arguments {words}: add how, or say why not")

    def command_prefopt(self, *words: str) -> None:
        if "--figures" in words and find_browser() is None:
            self.left_out.append(f"`prefopt {shlex.join(words)}` ran without --figures: {NO_BROWSER}")
            place = words.index("--figures")
            words = words[:place] + words[place + 2 :]
        *words, last = [self.localised(word) for word in words]
        if words[-1:] == [">"]:
            (self.folder / last).write_text(self.prefopt(*words[:-1]), encoding="utf-8")
        else:
            self.prefopt(*words, last)

    def command_make(self, *targets: str) -> None:
        subprocess.run(["make", "--dry-run", *targets], cwd=self.folder, check=True, capture_output=True)

    def command_pip(self, *words: str) -> None:
        verb, what = words
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert verb == "install"
        named = re.fullmatch(r"(?:\.|pl-prefopt\[(.+)\]|\.\[(.+)\])", what)
        assert named, what
        assert set(filter(None, (named[1] or named[2] or "").split(","))) <= set(extras)

    def command_source(self, script: str) -> None:
        assert script == ".venv/bin/activate"

    def run_yaml(self, block: Block) -> None:
        settings = yaml.safe_load(self.localised(block.text))
        how = ["--trainer.fast_dev_run", "1"]
        if "objective" in settings:  # a variation of the whole configuration that stands above it on the page
            settings = {"model": {"init_args": settings}}
            if "SrDPO" in block.text:
                settings["model"]["class_path"] = "pl_prefopt.modules.SrModule"
            how = ["--print_config"]
        if "KTO" in block.text or "BCO" in block.text:  # their threshold is one for scores of 1 and 0
            how += ["--data.train", "pairs.jsonl"]
        if "Rationale" in block.text:
            how += ["--data.train", "rationales.jsonl"]
        if "GivenSteps" in block.text:
            how += ["--data.train", "steps.jsonl"]
        if "aspects" in block.text:
            how += ["--data.train", "ratings.jsonl"]
        (self.folder / "block.yaml").write_text(yaml.safe_dump(settings))
        self.prefopt("fit", *AXES, "-c", "block.yaml", *how)

    def run_python(self, block: Block) -> None:
        if "import trl" in block.text or "from trl" in block.text:
            pytest.importorskip("trl")
        names = {
            **vars(pl_prefopt.functional),
            **vars(pl_prefopt.objectives),
            **vars(pl_prefopt.pairing),
        }
        if (file := re.match(r"# (\w+\.py)\n", block.text)) is not None:
            (self.folder / file[1]).write_text(block.text, encoding="utf-8")
        code = self.localised(block.text).replace("MODEL", str(self.tiny_model))
        exec(code.replace("DATA", "preferences.jsonl"), names)

    def run_json(self, block: Block) -> None:
        decoder, text = json.JSONDecoder(), block.text.strip()
        while text:
            row, end = decoder.raw_decode(text)
            text = text[end:].lstrip()
            if "index" in row:
                self.is_a_prediction(row)
            else:
                to_row(row)

    def is_a_prediction(self, shown: dict) -> None:
        self.prefopt("predict", *AXES, "--run_dir", "shown", "--data.predict", "more.jsonl")
        written = json.loads((self.folder / "shown/predictions.jsonl").read_text().splitlines()[0])
        assert set(shown) == set(written)
        assert set(shown["responses"][0]) == set(written["responses"][0])

    def run_toml(self, block: Block) -> None:
        """A package's entry points are of groups that are looked for."""
        groups = tomllib.loads(block.text)["project"]["entry-points"]
        assert set(groups) <= {f"pl_prefopt.{kind}" for kind in KINDS}

    def run_text(self, block: Block) -> None:
        """What a program prints; test_pages compares it."""


@pytest.fixture
def folder(tmp_path, tiny_model, commands, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Folder(tmp_path, tiny_model, commands)


def parameters(page: Path):
    draws = any("--figures" in block.text and block.reason is None for block in blocks(page))
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.browser] if draws else [])


@pytest.mark.parametrize("page", map(parameters, WITH_BLOCKS))
def test_every_block_of_a_page_runs(page, folder):
    to_run = [block for block in blocks(page) if block.reason is None]
    folder.make_runs("".join(block.text for block in to_run))
    for block in to_run:
        folder.run(block)
    if folder.left_out:
        pytest.skip("; ".join(folder.left_out))

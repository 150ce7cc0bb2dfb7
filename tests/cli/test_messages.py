"""What a mistake is told, word by word, and that nothing heavy is imported for it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.test_commands import axes

GOLDEN = Path(__file__).with_name("messages.txt")
HEAVY = ("torch", "lightning", "transformers", "datasets", "peft", "pandas", "plotly")
SCRIPT = """
import contextlib, io, json, os, sys
from pathlib import Path
from pl_prefopt.cli import class_sources, main
said = []
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(Path(folder).parent))]
    if list(Path().glob("*.py")):  # modules of the same name in several folders
        class_sources._parse.cache_clear()
    sys.argv = ["prefopt", *words]
    status, told = None, io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.suppress(SystemExit):
        main.main()
    said.append(told.getvalue())
heavy = [name for name in %r if name in sys.modules]
json.dump([said, heavy], sys.stdout)
"""


class Case(NamedTuple):
    """A command, the files beside it, and what it says."""

    command: str
    files: dict[str, str]
    says: str


def read_cases(text: str) -> list[Case]:
    cases = []
    for block in text.split("\n$ prefopt ")[1:]:
        command, *lines = block.rstrip("\n").split("\n")
        files: dict[str, str] = {}
        name = ""
        while lines and (lines[0].startswith("with ") or lines[0].startswith("    ")):
            line = lines.pop(0)
            if line.startswith("with "):
                name = line.removeprefix("with ").removesuffix(":")
                files[name] = ""
            else:
                files[name] += textwrap.dedent(line) if not files[name] else line[4:]
                files[name] += "\n"
        cases.append(Case(command, files, "\n".join(lines).strip()))
    return cases


CASES = read_cases(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each command says: all in one process, since none imports what takes seconds."""
    runs = []
    for number, case in enumerate(CASES):
        folder = tmp_path_factory.mktemp(f"case{number}")
        (folder / "adir").mkdir()
        for name, text in {
            **case.files,
            "rows.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        }.items():
            (folder / name).write_text(text)
        command, *words = shlex.split(case.command)
        if words[0] in ("DPO", "MRPO"):
            words[:1] = map(str, axes(words[0].lower()))
        runs.append((str(folder), [command, *words]))
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT % (HEAVY,)],
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    said, heavy = json.loads(ran.stdout)
    return runs, said, heavy


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.command for case in CASES])
def test_a_mistake_is_told_word_by_word(answers, number):
    runs, said, _ = answers
    configs = f"{axes()[1].parent}/"
    told = (
        said[number].replace(configs, "").replace(runs[number][0], "HERE").removeprefix("prefopt: ").strip()
    )
    assert told == CASES[number].says


def test_nothing_heavy_is_imported_for_a_mistake(answers):
    assert answers[2] == []

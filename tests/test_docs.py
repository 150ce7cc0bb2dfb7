"""The documentation: its configurations build, its Python runs, its links and commands exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.runs import pair_rows, scored_rows, write_rows
from tests.support import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
ADDING = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
DISTILLATION = (ROOT / "docs" / "guides" / "distillation.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page):
    """Every `prefopt` command line in the page's shell blocks."""
    for block in blocks(page.read_text(encoding="utf-8"), "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "prefopt":
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_and_settings_that_exist(page, tmp_path, monkeypatch, prefopt, tiny_model):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "squared_hinge.yaml").write_text(blocks(ADDING, "yaml")[0])
    (tmp_path / "mylab.py").write_text(blocks(ADDING, "python")[0])
    (tmp_path / "from_table.yaml").write_text(blocks(DISTILLATION, "yaml")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    for words in commands(page):
        if words[0] in ("fit", "plan"):
            assert "model:" in prefopt(*words, "--print_config")


def test_the_example_method_trains_as_the_page_says(tmp_path, monkeypatch, prefopt, tiny_model):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mylab.py").write_text(blocks(ADDING, "python")[0])
    (tmp_path / "squared_hinge.yaml").write_text(blocks(ADDING, "yaml")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    write_rows(tmp_path / "preferences.jsonl", pair_rows(8))
    (words,) = commands(ROOT / "docs" / "adding-a-method.md")
    run = ["--run_dir", "run", "--model.init_args.policy.name", str(tiny_model), "--data.held_out", "2"]
    prefopt(*words, *run)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    objective = saved["model"]["init_args"]["objective"]
    assert objective["class_path"] == "mylab.SquaredHinge"
    assert objective["init_args"]["beta"] == 0.2
    # An untrained pair costs (1 − 0)² = 1.
    prefopt("validate", "-c", "run/config.yaml", "--run_dir", "untrained")
    assert '"val/loss": 1.0,' in (tmp_path / "untrained" / "metrics.json").read_text()


def test_the_weak_policy_learns_from_the_strong_one_s_table_alone(tmp_path, prefopt, tiny_model):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_rows(tmp_path / "preferences.jsonl", scored_rows(8))
    strong = tmp_path / "strong-base"
    tokenizer = tiny_tokenizer(chat_template=None, vocab_size=330)
    tiny_llama(len(tokenizer), seed=7).save_pretrained(strong)
    tokenizer.save_pretrained(strong)
    (tmp_path / "from_table.yaml").write_text(blocks(DISTILLATION, "yaml")[0])
    train, export, score, learn = commands(ROOT / "docs" / "guides" / "distillation.md")
    train[train.index("--model.init_args.policy.name") + 1] = str(strong)
    weak = ["--model.init_args.policy.name", str(tiny_model)]
    prefopt(*train)
    prefopt(*export)
    said = prefopt(*score, *weak)
    assert "Log-probs are in tables/base-" in said
    assert "Log-probs are in tables/model-" in said
    (move,) = [block for block in blocks(DISTILLATION, "bash") if block.startswith("mv")]
    subprocess.run(move, shell=True, check=True, cwd=tmp_path)
    # Another machine: neither the strong model is there nor what lay beside it.
    for folder in ("strong-base", "strong", "tables", "runs/strong", ".cache"):
        shutil.rmtree(tmp_path / folder)
    prefopt(*learn, *weak)
    metrics = json.loads((tmp_path / "runs" / "weak" / "metrics.json").read_text())
    assert 0 < metrics["val/alpha_1"] < 1
    # Other rows are not those of the table.
    write_rows(tmp_path / "preferences.jsonl", scored_rows(9))
    assert "strong-table" in prefopt.fails(*learn, *weak, "--run_dir", "runs/other")


def test_the_python_example_of_the_command_line_page_runs(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(8))
    (code,) = blocks((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "python")
    exec(code.replace("MODEL", str(tiny_model)).replace("DATA", rows), {})


def test_the_readme_rows_are_accepted(tmp_path, prefopt, tiny_model):
    lines = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "json")[0].splitlines()
    (tmp_path / "preferences.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = next(words for words in commands(ROOT / "README.md") if words[0] == "fit")
    words[words.index("--model.init_args.policy.name") + 1] = str(tiny_model)
    prefopt(*words, "--trainer.fast_dev_run", "1", "--data.held_out", "0")

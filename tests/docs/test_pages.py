"""The documentation's pages: their links lead somewhere, and what they show is what the program prints."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from tests.docs.pages import ADDING, PAGES, ROOT, blocks, first, name_of
from tests.runs import metrics_of, pair_rows, write_rows


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name == "methods" and page.stem not in ("index", "catalogue")],
    ids=name_of,
)
def test_a_family_has_its_maths_its_yaml_when_to_use_it_and_what_to_watch(page):
    text = page.read_text(encoding="utf-8")
    assert "$$" in text or text.count("$") >= 6
    assert first(page, "yaml")
    for part in ("When", "Watch"):
        assert re.search(rf"^(## {part}$|\*\*{part}\.\*\*)", text, flags=re.MULTILINE), part


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_that_a_page_runs_exist(page):
    for block in blocks(page):
        for words in block.commands if block.language == "bash" else ():
            if words[0] == "python":
                module = words[1] == "-m"
                script = words[2].replace(".", "/") + ".py" if module else words[1]
                assert (ROOT / script).is_file()


def test_a_new_method_in_one_file_and_one_yaml_trains(tmp_path, monkeypatch, prefopt, tiny_model):
    """Outside the repository, as the page says."""
    (tmp_path / "mylab.py").write_text(first(ADDING, "python"))
    (tmp_path / "squared_hinge.yaml").write_text(first(ADDING, "yaml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    write_rows(tmp_path / "preferences.jsonl", pair_rows(8))
    (command,) = next(block for block in blocks(ADDING) if block.language == "bash").commands
    run = ["--run_dir", "run", "--model.init_args.policy.name", str(tiny_model), "--data.held_out", "2"]
    prefopt(*command[1:], *run)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    objective = saved["model"]["init_args"]["objective"]
    assert objective["class_path"] == "mylab.SquaredHinge"
    assert objective["init_args"]["beta"] == 0.2
    # An untrained pair costs (1 − 0)² = 1.
    prefopt("validate", "-c", "run/config.yaml", "--run_dir", "untrained")
    assert metrics_of(tmp_path / "untrained")["val/loss"] == 1


def test_the_readme_shows_the_class_of_the_page_that_explains_it():
    shown, explained = {}, {}
    rooms = ("functional", "objectives", "pairing")
    exec("\n".join(f"from pl_prefopt.{room} import *" for room in rooms), shown)
    exec(first(ROOT / "README.md", "python"), shown)
    exec(first(ADDING, "python"), explained)
    log_probs = [torch.tensor([value]) for value in (-3.0, -4.0, -5.0, -2.0)]
    one, other = (scope["SquaredHinge"](beta=0.3).pair_loss(*log_probs) for scope in (shown, explained))
    assert one == other
    assert one.loss.item() == pytest.approx((1 - 0.3 * 4) ** 2 if 0.3 * 4 < 1 else 0.0)


def test_the_list_of_commands_is_the_help(prefopt):
    printed = prefopt("--help")
    for line in first(ROOT / "docs" / "cli.md", "text").splitlines():
        command, what = line.removeprefix("prefopt ").split(maxsplit=1)
        assert re.search(rf"^ +{command} +{re.escape(what)}$", printed, flags=re.MULTILINE)


def test_the_bad_row_that_the_data_page_shows_is_told_so(tmp_path, prefopt, tiny_model):
    rows = pair_rows(12)
    rows[11]["rejected"] = rows[11]["chosen"]
    write_rows(tmp_path / "pairs.jsonl", rows)
    axes = [part for name in ("base", "methods/dpo", "hardware/cpu") for part in ("-c", name)]
    said = prefopt.fails(
        "fit", *axes, "--data.train", "pairs.jsonl", "--model.init_args.policy.name", tiny_model
    )
    shown = first(ROOT / "docs" / "data.md", "text")
    assert " ".join(shown.split()) in " ".join(said.split())

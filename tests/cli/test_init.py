"""``prefopt init``: a commented configuration that ``fit`` takes."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.runs import rated_rows, write_rows


def test_init_writes_a_configuration_that_fit_takes(prefopt, tiny_model):
    write_rows(Path("theirs.jsonl"), rated_rows(8))
    names = ("--columns", "prompt=question", "chosen=good", "rejected=bad")
    said = prefopt("init", "--method", "simpo", "--data", "theirs.jsonl", "--policy", tiny_model, *names)
    assert "8 rows of theirs.jsonl: pairs (layouts:" in said
    text = Path("prefopt.yaml").read_text()
    for comment in (
        "# Written by `prefopt init --method simpo",
        "  # 8 rows of theirs.jsonl",
        "# On the command line",
    ):
        assert comment in text
    written = yaml.safe_load(text)
    assert written["model"]["init_args"]["policy"]["name"] == str(tiny_model)
    shown = yaml.safe_load(prefopt("fit", "-c", "prefopt.yaml", "--print_config"))
    shown_objective = shown["model"]["init_args"]["objective"]
    assert shown_objective["class_path"] == "pl_prefopt.objectives.SimPO"
    assert (
        shown_objective["init_args"]["beta"]
        == written["model"]["init_args"]["objective"]["init_args"]["beta"]
    )
    assert shown["data"]["columns"] == {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert shown["trainer"]["accelerator"] == "cpu"
    with Path("prefopt.yaml").open("a") as file:
        file.write("early_stop: {patience: 3}\n")
    assert yaml.safe_load(Path("prefopt.yaml").read_text())["early_stop"] == {"patience": 3}

    fails = prefopt.fails
    assert "prefopt.yaml exists" in fails("init", "--data", "theirs.jsonl")
    assert "methods/dpo" in fails("init", "--data", "theirs.jsonl", "--method", "dpoo", "--out", "a.yaml")
    write_rows(Path("single.jsonl"), [{"prompt": "Say no.", "completion": "No.", "label": True}])
    said = fails("init", "--data", "single.jsonl", "--out", "a.yaml")
    assert "DPO learns from pairs or lists, but single.jsonl has unpaired: `prefopt list" in said
    assert not Path("a.yaml").exists()


def test_the_help_of_fit_opens_with_examples(prefopt):
    opening = prefopt("fit", "--help").split("All settings:")[0].splitlines()
    assert len([line for line in opening if line.startswith("  prefopt fit ")]) == 5
    assert len(opening) <= 24

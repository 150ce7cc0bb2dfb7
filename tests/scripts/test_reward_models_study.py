"""The study of reward models at smoke size."""

from __future__ import annotations

import csv
import json

import yaml

from tests.scripts.study_scripts import STUDIES, TINY, load_script, write_graded_rows

CONFIG = yaml.safe_load((STUDIES / "reward_models.yaml").read_text(encoding="utf-8"))


def write_dialogues(path):
    """Write eight pairs of whole dialogues, one of which differs before its end, and one too long."""
    rows = [
        {
            "chosen": f"\n\nHuman: Say {number}.\n\nAssistant: It is {number}.",
            "rejected": f"\n\nHuman: Say {number}.\n\nAssistant: {'No! ' * (100 if number == 7 else 1)}",
        }
        for number in range(9)
    ]
    rows[8]["rejected"] = rows[8]["rejected"].replace("Say", "Do not say")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_study_measures_heads_and_the_implicit_reward_on_lists_and_pairs(tiny_model, tmp_path):
    write_graded_rows(tmp_path / "lists.jsonl")
    write_dialogues(tmp_path / "pairs.jsonl")
    data = {
        name: {**settings, "file": str(tmp_path / f"{name}.jsonl"), "train_prompts": 4, "held_out_prompts": 3}
        for name, settings in CONFIG["data"].items()
    }
    methods = {"lists": ["bradley_terry"], "pairs": ["dpo", "micro"]}
    changes = {"model": str(tiny_model), "data": data, "methods": methods, "seeds": [0], "frozen_epochs": 2}
    settings = CONFIG | {"lora": TINY["lora"]} | changes
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    out = tmp_path / "out"
    load_script("reward_models").main(["--config", str(tmp_path / "study.yaml"), "--out", str(out)])
    with (out / "reward_models.csv").open(encoding="utf-8", newline="") as file:
        lines = {(line["data"], line["method"]): line for line in csv.DictReader(file)}
    assert list(lines) == [
        ("lists", "bradley_terry"),
        ("lists", "bradley_terry_frozen"),
        ("pairs", "dpo"),
        ("pairs", "micro"),
        ("pairs", "micro_frozen"),
    ]
    for line in lines.values():
        low, accuracy, high = (float(line[f"accuracy{end}"]) for end in ("_low", "", "_high"))
        assert 0 <= low <= accuracy <= high <= 1
    assert lines["lists", "bradley_terry"]["kendall_within"]
    answers = (out / "lists" / "answers.md").read_text(encoding="utf-8")
    assert "an adapter is better than a head alone (difference of accuracies) | 1 |" in answers
    rows = {split: (out / "pairs" / "rows" / f"{split}.jsonl").read_text() for split in ("train", "held_out")}
    assert len(set("".join(rows.values()).splitlines())) == 7, "no prompt twice, none of the two that differ"


def test_the_real_study_s_settings_name_methods_that_exist():
    script = load_script("reward_models")
    for methods in CONFIG["methods"].values():
        assert script.heads(methods) == [method for method in methods if method != "dpo"]

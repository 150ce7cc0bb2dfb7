"""The recipes of configs/recipes: their settings are read, and their batches are those that they publish."""

from __future__ import annotations

import re

import pytest
import yaml

from pl_prefopt.cli.config_diagnostics import check_command
from pl_prefopt.cli.config_files import with_paths
from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives import DPO, APOZero, PairMNM, SimPO
from tests.method_files import CONFIGS

RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
PUBLISHED = {
    "zephyr_7b_dpo": (128, 5e-7, {"beta": 0.01}, DPO),
    "llama3_8b_simpo": (128, 1e-6, {"beta": 2.5, "gamma": 0.55 * 2.5}, SimPO),
    "smollm3_3b_apo": (32, 1e-6, {"beta": 0.05}, APOZero),
    "llama3_8b_mppo": (64, 1e-6, {"temperature": 1.0}, PairMNM),
    "qwen3_8b_dpo": (32, 5e-6, {"beta": 0.1}, DPO),
    "gemma3_1b_dpo": (32, 5e-6, {"beta": 0.1}, DPO),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_published_batch_and_settings(path, tiny_model):
    prompts, rate, settings, kind = PUBLISHED[path.stem]
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    trainer, model = given["trainer"], given["model"]["init_args"]
    assert given["data"]["batch_size"] * trainer["accumulate_grad_batches"] * trainer["devices"] == prompts
    assert model["optimizer"]["init_args"]["lr"] == rate
    assert model["objective"]["class_path"].endswith(f".{kind.__name__}")
    assert {name: model["objective"]["init_args"][name] for name in settings} == pytest.approx(settings)
    words = ["fit", "-c", f"recipes/{path.stem}", "--policy", str(tiny_model)]
    check_command("fit", with_paths(words)[1:])
    with pytest.raises(ConfigError, match="there is no setting"):
        check_command("fit", [*with_paths(words)[1:], "--trainer.epochs", "2"])


def test_a_recipe_for_eight_gpus_can_be_planned(prefopt, tiny_model):
    """With a tiny model and short rows in the place of those that would have to be fetched."""
    small = ["--data.max_prompt_length", "16", "--data.max_response_length", "16", "--data.batch_size", "1"]
    local = ["--policy", tiny_model, "--model.policy.revision", "null", "--data.train", "null"]
    assert "It fits." in prefopt("plan", "-c", "recipes/smollm3_3b_apo", *local, *small, "--memory", "1GiB")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_its_settings_come_from_and_what_was_tried(path):
    comment = "".join(re.findall(r"^# (.*\n)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert re.search(r"Published \(.*arXiv|alignment-handbook|No settings are published", comment)
    assert "urs" in comment, "which settings are ours"
    assert re.search(r"Planned: .* GiB per GPU|Not planned", comment)
    assert re.search(r"Run\b|[Nn]ot run", comment)

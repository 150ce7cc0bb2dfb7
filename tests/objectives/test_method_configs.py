"""The objective of every method's configuration, built as the command line builds it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from pl_prefopt import heads
from pl_prefopt.objectives import (
    AlphaDivergence,
    ForwardKL,
    Geometric,
    MultiReferenceObjective,
    Objective,
    ReferenceFreeObjective,
    ReferenceObjective,
    RewardObjective,
    SelfRefinedObjective,
    TokenLevelObjective,
    UniformWeights,
    VirtualReference,
)
from pl_prefopt.views import QualityPrompt

FOLDER = Path(__file__).parents[2] / "configs" / "methods"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FAMILIES = {
    "MRPOModule": MultiReferenceObjective,
    "SrModule": SelfRefinedObjective,
    "TokenLevelModule": TokenLevelObjective,
    "DPOModule": ReferenceObjective,
    "RewardModule": RewardObjective,
    "ReferenceFreeModule": ReferenceFreeObjective,
}


def load(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def build(*settings):
    """Instantiate the objective of these configurations, later ones over earlier ones."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    config = None
    for setting in settings:
        chosen = {"objective": setting["model"]["init_args"]["objective"]}
        config = parser.parse_object(chosen, cfg_base=config)
    return parser.instantiate(config).objective


def test_the_methods_are_all_there():
    expected = ["dpo", "cdpo", "ipo", "ipo_mean", "hinge", "rdpo", "dpop", "kto", "simpo", "orpo"]
    expected += [f"f_dpo_{divergence}" for divergence in ("reverse_kl", "forward_kl", "js", "alpha")]
    expected += ["mrpo", "mrpo_geometric", "mrpo_uniform", "multi_dpo", "sr_dpo", "sr_ipo", "sr_mrpo"]
    assert set(expected) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_spells_out_every_setting(name):
    # A later configuration that swaps the class keeps same-named settings of the earlier one.
    objective = load(name)["model"]["init_args"]["objective"]
    built = build(load(name))
    assert set(objective["init_args"]) == set(inspect.signature(type(built)).parameters)
    assert f"{type(built).__module__}".startswith("pl_prefopt.objectives")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_fits_its_module_and_its_references(name):
    config, built = load(name), build(load(name))
    family = FAMILIES.get(config["model"]["class_path"].rpartition(".")[2])
    assert family is None or isinstance(built, family)
    members = len(config["references"]["members"])
    assert members >= built.needs.min_references
    assert built.needs.max_references is None or members <= built.needs.max_references


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_acts_between_epochs_has_some(name):
    settings = load(name)["model"]["init_args"]
    head = settings.get("reward_head", {}).get("class_path", "pl_prefopt.heads.ScalarHead").rpartition(".")[2]
    first = settings.get("warmup_epochs", int(getattr(heads, head).update is not heads.Head.update))
    assert load(name).get("trainer", {}).get("max_epochs", 1) > first


@pytest.mark.parametrize("name", NAMES)
def test_a_method_names_its_paper_on_top(name):
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert "arXiv" in first or "Mitchell" in first


def test_nested_settings_arrive():
    assert build(load("f_dpo_alpha")).divergence == AlphaDivergence(alpha=0.5)
    assert build(load("cdpo")).label_smoothing == 0.1
    assert build(load("ipo_mean")).normalize == "mean"
    assert build(load("mrpo")).reference == build(load("sr_mrpo")).reference == VirtualReference()
    assert build(load("mrpo_geometric")).reference == VirtualReference(aggregate=Geometric())
    assert build(load("mrpo_uniform")).reference == VirtualReference(UniformWeights())
    assert build(load("sr_dpo")).view == build(load("sr_ipo")).view == QualityPrompt()


@pytest.mark.parametrize("second", ["mrpo", "multi_dpo", "sr_dpo", "sr_mrpo"])
@pytest.mark.parametrize("first", ["dpo", "mrpo_uniform", "mrpo_geometric", "sr_ipo", "sr_mrpo"])
def test_references_of_an_earlier_method_leave_nothing_behind(first, second):
    swapped, plain = build(load(first), load(second)), build(load(second))
    assert type(swapped) is type(plain)
    assert vars(swapped) == vars(plain) | {
        name: vars(swapped)[name] for name in vars(swapped) if name[0] == "_"
    }


@pytest.mark.parametrize("first", NAMES)
def test_a_later_method_replaces_an_earlier_one(first):
    swapped, plain = build(load(first), load("f_dpo_forward_kl")), build(load("f_dpo_forward_kl"))
    assert type(swapped) is type(plain)
    assert (swapped.beta, swapped.divergence, swapped.pairing) == (plain.beta, ForwardKL(), plain.pairing)


def test_the_pages_name_only_classes_and_settings_that_exist():
    pages = Path(__file__).parents[2] / "docs" / "methods"
    blocks = [
        yaml.safe_load(block.split("```")[0])
        for page in ("dpo", "kto", "simpo_orpo", "mrpo", "sr_dpo")
        for block in (pages / f"{page}.md").read_text(encoding="utf-8").split("```yaml\n")[1:]
    ]
    assert len(blocks) == 12
    for block in blocks:
        whole = block if "model" in block else {"model": {"init_args": block}}
        objective = whole["model"]["init_args"]["objective"]
        assert set(objective["init_args"]) == set(inspect.signature(type(build(whole))).parameters)

"""The page for those who come from TRL: each setting exists, there and here, and none of TRL's is missing."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

import pl_prefopt
from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.cli.trainer import PrefOptTrainer
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.modules import PreferenceModule, Schedule
from pl_prefopt.policies import PolicySpec
from tests.docs.pages import ROOT

trl = pytest.importorskip("trl")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]

PAGE = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
CONFIGS = {
    "DPOConfig": "trl",
    "KTOConfig": "trl",
    "ORPOConfig": "trl.experimental.orpo",
    "CPOConfig": "trl.experimental.cpo",
    "RewardConfig": "trl",
}
OURS = {
    "trainer": PrefOptTrainer,
    "data": PreferenceDataModule,
    "references": ReferenceEnsemble,
    "policy": PolicySpec,
    "schedule": Schedule,
    "model.init_args": PreferenceModule,
    "best": ModelCheckpoint,
    "last": ModelCheckpoint,
}


def fields(name):
    kind = getattr(importlib.import_module(CONFIGS[name]), name)
    return {field.name for field in dataclasses.fields(kind)}


def shared_fields():
    import transformers

    return {field.name for field in dataclasses.fields(transformers.TrainingArguments)}


def rows(heading):
    """The first cells' names and the second cells' texts of a section's tables."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)[1]
    tables = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [(set(re.findall(r"`([a-z_]\w+)(?:=[^`]*)?`", cells[0])), cells[1]) for cells in tables]


def named(heading):
    return {name for names, _ in rows(heading) for name in names}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_of_trl_is_on_the_page(config):
    own = fields(config) - shared_fields()
    assert own <= named(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_on_the_page_is_trls(config):
    values = {"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"}  # of loss_type
    assert named(config) - values <= fields(config)


def test_every_loss_of_trls_dpo_trainer_is_on_the_page():
    source = inspect.getsource(trl.DPOTrainer._compute_loss)
    theirs = set(re.findall(r'loss_type == "(\w+)"', source))
    assert len(theirs) == 15
    table = dict(re.findall(r"^\| `(\w+)` \| `…objectives[^|]*\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    assert table.keys() == theirs
    assert set(table.values()) <= {path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml")}


def test_what_all_trainers_share_is_all_of_transformers_and_of_the_trainers():
    arguments = set(inspect.signature(trl.DPOTrainer).parameters)
    assert named("What all trainers share") == shared_fields() | arguments


def test_every_setting_of_ours_on_the_page_exists():
    found = 0
    for heading in ("What all trainers share", *CONFIGS):
        for _, ours in rows(heading):
            for place, key in re.findall(r"`((?:model\.init_args|\w+))\.(\w+)`", ours):
                if place in OURS:
                    assert key in inspect.signature(OURS[place]).parameters, f"{place}.{key}"
                    found += 1
    assert found > 30


def test_every_class_of_ours_on_the_page_takes_what_is_said():
    named_classes = re.findall(r"`…(\w+)\.(\w+)(?:\((\w+)=)?", PAGE)
    assert len(named_classes) > 10
    for room, name, setting in named_classes:
        kind = getattr(importlib.import_module(f"{pl_prefopt.__name__}.{room}"), name)
        assert not setting or setting in inspect.signature(kind).parameters


def test_simpo_needs_cpo_alpha_zero_as_the_page_says():
    from trl.experimental.cpo import CPOConfig

    assert CPOConfig.cpo_alpha == 1.0

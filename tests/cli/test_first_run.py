"""What someone meets who has just installed `prefopt`: its help, and what it says of a wrong setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cli.test_commands import axes

MODEL = "model.init_args"
LISTED = "`prefopt list objectives` lists all objectives."


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "precompute"])
def test_a_bare_command_explains_itself_in_five_lines(prefopt, command):
    said = prefopt.fails(command)
    assert f"prefopt {command} -c" in said
    assert len(said.strip().splitlines()) <= 5


def test_the_help_of_a_command_shows_our_settings_and_where_lightnings_are(prefopt):
    printed = prefopt("fit", "--help")
    assert "usage: prefopt fit [-c FILE.yaml ...]" in printed
    for setting in ("--data.train", "--references.precompute", "--run_dir", "--ckpt_path", "--model.help"):
        assert setting in printed
    assert "--trainer.max_epochs" not in printed
    assert "--help trainer" in printed
    lightnings = prefopt("fit", "--help", "trainer")
    assert "--trainer.max_epochs" in lightnings
    assert "--data.train" not in lightnings
    everything = prefopt("fit", "--help", "all")
    assert "--trainer.max_epochs" in everything
    assert "--best.monitor" in everything
    assert "--data.train" in everything


def test_the_help_of_a_class_shows_its_settings(prefopt):
    printed = prefopt("fit", "--model.help", "pl_prefopt.modules.DPOModule")
    assert "--model.policy.name" in printed


def at(path, value):
    """A configuration with the value at the dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


IN_A_FILE = {
    "a setting of the data": (
        at("data.trian", "x"),
        "there is no setting 'data.trian'; did you mean 'data.train'?",
    ),
    "a setting of the objective": (
        at(f"{MODEL}.objective.init_args.bta", 0.2),
        f"{MODEL}.objective.init_args.bta: DPO has no setting 'bta'; did you mean 'beta'?",
    ),
    "a setting of the module": (
        at(f"{MODEL}.polcy.name", "x"),
        f"{MODEL}.polcy: DPOModule has no setting 'polcy'; did you mean 'policy'?",
    ),
    "a setting of the policy": (
        at(f"{MODEL}.policy.nme", "x"),
        f"{MODEL}.policy.nme: PolicySpec has no setting 'nme'; did you mean 'name'?",
    ),
    "a setting of a reference": (
        at(
            "references.members",
            [{"class_path": "pl_prefopt.references.FrozenModel", "init_args": {"modl": {}}}],
        ),
        "references.members.0.init_args.modl: FrozenModel has no setting 'modl'; did you mean 'model'?",
    ),
    "a class": (
        at(f"{MODEL}.objective.class_path", "pl_prefopt.objectives.DPPO"),
        f"there is no class 'pl_prefopt.objectives.DPPO'; did you mean 'pl_prefopt.objectives.DPO'? {LISTED}",
    ),
    "a module that is not there": (
        at(f"{MODEL}.objective.class_path", "mylab.DPPO"),
        "there is no module 'mylab' in the working directory or on PYTHONPATH, so mylab.DPPO can't be "
        f"imported. {LISTED}",
    ),
    "another family's class": (
        at(f"{MODEL}.objective.class_path", "pl_prefopt.objectives.SimPO"),
        "pl_prefopt.objectives.SimPO is not a subclass of ReferenceObjective. It is trained by "
        f"pl_prefopt.modules.ReferenceFreeModule: set `model.class_path` to that. {LISTED}",
    ),
}


def test_a_file_that_is_no_yaml_is_named(prefopt):
    Path("mine.yaml").write_text("model:\n  init_args: [\n")
    said = prefopt.fails("fit", *axes(), "-c", "mine.yaml")
    assert re.match(r"prefopt: mine\.yaml, line 3: .*: this is not valid YAML\.$", said.strip())


def test_a_mistake_in_ones_own_module_is_told(prefopt, tmp_path, monkeypatch):
    Path("own_method.py").write_text("class Mine(Nothing):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = prefopt.fails("fit", *axes(), f"--{MODEL}.objective", "own_method.Mine")
    assert "own_method.Mine can't be imported (NameError: name 'Nothing' is not defined)" in said


@pytest.mark.parametrize("mistake", IN_A_FILE)
def test_a_mistake_in_a_file_is_told_with_file_key_and_what_would_be_right(prefopt, mistake):
    settings, expected = IN_A_FILE[mistake]
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    said = prefopt.fails("fit", *axes(), "-c", "mine.yaml")
    assert said.startswith("prefopt: mine.yaml: ")
    assert expected in said
    assert len(said.strip().splitlines()) == 1


def test_a_mistake_in_an_argument_is_told_without_a_file(prefopt):
    said = prefopt.fails("fit", *axes(), f"--{MODEL}.objective", "pl_prefopt.objectives.SimPO")
    assert said.startswith(
        f"prefopt: {MODEL}.objective: pl_prefopt.objectives.SimPO is not a subclass of ReferenceObjective."
    )


def test_what_the_parser_alone_understands_is_one_sentence_too(prefopt):
    Path("mine.yaml").write_text("trainer:\n  default_root_dir: [1]\n")
    said = prefopt.fails("fit", *axes(), "-c", "mine.yaml")
    wanted = "expected text; expected str, bytes or os.PathLike object, not list"
    assert said == f"prefopt: mine.yaml: trainer.default_root_dir: {wanted}.\n"

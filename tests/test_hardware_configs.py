"""Every file of configs/hardware with a file of configs/methods of each family."""

from __future__ import annotations

import pytest
import yaml

from pl_prefopt.cli.app import PrefOptCLI
from pl_prefopt.cli.export import read_policy_spec
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import FSDP2Strategy
from pl_prefopt.references import InitialPolicy
from tests.method_files import CONFIGS, one_of_each_family

HARDWARE = sorted((CONFIGS / "hardware").glob("*.yaml"))


class ParserBuiltError(Exception):
    """Stops the command line as soon as it has a parser."""


class ParserOnly(PrefOptCLI):
    def parse_arguments(self, parser, args):
        raise ParserBuiltError(self._subcommand_parsers["fit"])


@pytest.fixture(scope="module")
def parser():
    with pytest.raises(ParserBuiltError) as stopped:
        ParserOnly([])
    return stopped.value.args[0]


@pytest.fixture(scope="module")
def methods(parser):
    """Each method's settings over the base's."""
    base = ["-c", str(CONFIGS / "base.yaml")]
    return {
        path.stem: parser.parse_args([*base, "-c", str(path)], defaults=False)
        for path in one_of_each_family()
    }


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.stem)
def test_hardware_goes_with_every_family(parser, methods, path, tmp_path):
    hardware = load(path)
    policy = hardware["model"]["init_args"]["policy"]
    for name, method in methods.items():
        both = parser.parse_object(hardware, cfg_base=method, defaults=False)
        arguments = both.model.init_args
        assert arguments.objective == method.model.init_args.objective, name
        assert both.references.members == method.references.members, name
        assert {key: arguments.policy[key] for key in policy} == _with_defaults(policy), name
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"policy": {"name": "x", **policy}}}})
    )
    spec = read_policy_spec(tmp_path / "config.yaml")
    spec.check_trainable()
    InitialPolicy().check(spec)


def _with_defaults(policy):
    from jsonargparse import Namespace

    return {key: Namespace(**value) if key == "four_bit" else value for key, value in policy.items()}


def test_a_wrong_setting_in_hardware_is_refused(parser, methods):
    wrong = {"model": {"init_args": {"policy": {"gradient_checkpoints": True}}}}
    with pytest.raises(ConfigError, match="gradient_checkpoints"):
        parser.parse_object(wrong, cfg_base=next(iter(methods.values())), defaults=False)


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.stem)
def test_split_weights_fit_the_processes(path):
    trainer = load(path)["trainer"]
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, str):
        assert "num_nodes" not in trainer
        return
    settings = strategy["init_args"]
    FSDP2Strategy(**settings)
    assert settings["data_parallel_size"] == trainer["devices"] * trainer.get("num_nodes", 1)
    assert settings["tensor_parallel_size"] == 1

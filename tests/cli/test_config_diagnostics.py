"""What source files say of classes and settings is what Python says of them, so nothing good is refused."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import typing
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    timer,
)
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import SchedulerType

import pl_prefopt.objectives
from pl_prefopt.cli import known_metrics
from pl_prefopt.cli.app import PrefOptCLI
from pl_prefopt.cli.class_sources import (
    ABSENT,
    OTHER,
    ClassSource,
    Setting,
    derives_from,
    exported,
    find_class,
    is_abstract,
    signature,
)
from pl_prefopt.cli.config_diagnostics import EVERYWHERE, OF_COMMAND, SECTIONS, check_command
from pl_prefopt.cli.given_settings import Written
from pl_prefopt.cli.known_classes import _OFFERED, _known
from pl_prefopt.cli.known_words import known_texts
from pl_prefopt.cli.parser import Parser
from pl_prefopt.cli.plan import PlanCLI
from pl_prefopt.cli.setting_kinds import kinds_of
from pl_prefopt.errors import ConfigError
from tests.cli.test_commands import CONFIGS, axes

PACKAGES = [
    *(
        f"pl_prefopt.{name}"
        for name in ("objectives", "modules", "references", "callbacks", "policies", "pairing")
    ),
    "pl_prefopt.data",
    *(
        f"lightning.pytorch.{name}"
        for name in ("callbacks", "loggers", "strategies", "profilers", "accelerators")
    ),
    "torch.optim",
]
TARGETS = [
    "pl_prefopt.objectives.Objective",
    "pl_prefopt.objectives.ReferenceObjective",
    "pl_prefopt.modules.PreferenceModule",
    "pl_prefopt.references.Reference",
    "lightning.pytorch.Callback",
    "lightning.pytorch.strategies.Strategy",
    "torch.optim.Optimizer",
]


def made(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_sources_say_what_python_says(package):
    sources = exported(package)
    assert sources
    for path, source in sources.items():
        real = made(path)
        assert source.name == real.__name__
        if real.__module__.split(".")[0] != package.split(".")[0] or getattr(real, "_is_protocol", False):
            continue
        if issubclass(real, Exception):  # which a setting can't name, and which Python has no signature of
            continue
        read = signature(source)
        parameters = [
            one
            for one in inspect.signature(real).parameters.values()
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        assert set(read.settings) >= {one.name for one in parameters} or read.takes_more, path
        for one in parameters:
            assert (
                one.name not in read.settings
                or not read.settings[one.name].required
                or one.default is one.empty
            )
        if not inspect.isabstract(real) and package.startswith("pl_prefopt"):
            assert not is_abstract(source), path
        for target in TARGETS:
            derived = derives_from(source, find_class(target))
            assert derived in (None, issubclass(real, made(target))), (path, target)


def test_of_our_own_classes_sources_leave_nothing_open():
    for package in PACKAGES[:4]:
        for path, source in exported(package).items():
            if (
                not path.endswith((".FSDP2Strategy", ".ParameterCount"))  # which pass on what Lightning takes
                and not is_abstract(source)
                and path.startswith(source.module.split(".")[0])
            ):
                assert not signature(source).takes_more, path
                assert derives_from(source, find_class("pl_prefopt.objectives.Objective")) is not None


def test_names_are_absent_only_where_that_is_certain():
    assert find_class("pl_prefopt.objectives.DPPO") is ABSENT
    assert find_class("nowhere.at.all.Thing") is ABSENT
    assert find_class("pl_prefopt.modules.base.adamw") is OTHER
    for path in ("os.system", "torch.nn.Linear", "torch._C.Tensor", "pl_prefopt.objectives.DPO.forward"):
        assert find_class(path) is not ABSENT


@pytest.mark.parametrize("command", OF_COMMAND)
def test_the_settings_known_early_are_those_of_the_parser(monkeypatch, command):
    class StopError(Exception):
        pass

    def stop(self, parser, args):
        raise StopError(parser)

    monkeypatch.setattr(PrefOptCLI, "parse_arguments", stop)
    with pytest.raises(StopError) as stopped:
        (PlanCLI if command == "plan" else PrefOptCLI)(args=[])
    actions = stopped.value.args[0]._subcommands_action.choices[command]._actions
    dests = {action.dest for action in actions} - {"help", "config", "print_config"}
    sections = {
        f"{name}.{key}"
        for name, path in SECTIONS.items()
        if name != "early_stop"  # one setting, which is null or an object
        for key in signature(find_class(path)).settings
    }
    early = {"model", *EVERYWHERE, *OF_COMMAND[command], *sections}
    assert {dest for dest in dests if not dest.endswith(".help") and dest not in SECTIONS} == early


ALONE = [*CONFIGS.glob("ready/*.yaml")]
BESIDE = [*CONFIGS.glob("data/*.yaml"), *CONFIGS.glob("loggers/*.yaml"), *CONFIGS.glob("hardware/*.yaml")]


def test_every_configuration_passes(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for method in CONFIGS.glob("methods/*.yaml"):
        for order in itertools.permutations(
            [CONFIGS / "base.yaml", method, CONFIGS / "hardware" / "cpu.yaml"]
        ):
            check_command("fit", [part for file in order for part in ("-c", str(file))] + ["--print_config"])
    for file in BESIDE:
        check_command("fit", [*map(str, axes("mrpo")), "-c", str(file), "--print_config"])
    for file in ALONE:
        check_command("fit", ["-c", str(file), "--print_config"])


HINTS = [
    "int",
    "float",
    "bool",
    "str",
    "int | None",
    "float | int",
    "bool | int",
    "str | None",
    "Literal['auto', 'plain']",
    "Literal[16, '16-mixed'] | None",
    "list[int] | int",
    "list[str]",
    "dict[str, int] | None",
    "Optional[Union[int, float]]",
]
VALUES = [
    0,
    3,
    -1,
    2.5,
    2.0,
    True,
    False,
    "abc",
    "3",
    "2.5",
    "true",
    "no",
    "auto",
    "",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    16,
    None,
]


@pytest.mark.parametrize("hint", HINTS)
def test_what_is_refused_early_is_refused_by_the_parser(hint):
    parser = Parser(exit_on_error=False)
    parser.add_argument("--key", type=eval(hint, vars(typing)))
    kinds = kinds_of(Setting("pl_prefopt.types", "key", ast.parse(hint, mode="eval").body, required=False))
    refused = [value for value in VALUES if kinds.refusal(value) is not None]
    assert refused
    for value in refused:
        with pytest.raises(ConfigError):
            parser.parse_object({"key": value})
    for text in ("[1, 2]", "{a: 1}"):  # which is text where text is taken
        value = Written(text, [1, 2] if text[0] == "[" else {"a": 1})
        if kinds.refusal(value) is not None:
            with pytest.raises(ConfigError):
                parser.parse_args(["--key", text])


PLUG_IN = """
from dataclasses import dataclass
from pl_prefopt.objectives import DPO

class Plain(DPO):
    pass

class Open(DPO):
    def __init__(self, gamma: float = 1.0, **others) -> None:
        super().__init__(**others)

def decorated(cls):
    return cls

@decorated
class Decorated(DPO):
    pass

class Made(DPO):
    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

globals()["Later"] = type("Later", (DPO,), {})

@dataclass
class Margin:
    size: int
    shape: list[tuple[int, str]]

class Nested(DPO):
    def __init__(self, margin: Margin, anything: "Unknown" = None) -> None:
        super().__init__()
"""
PLUGGED_IN = {
    "Plain": {"beta": 0.2, "label_smoothing": 0.1},
    "Open": {"gamma": 2, "beta": 0.2},
    "Decorated": {"whatever": 1},
    "Made": {"whatever": 1},
    "Later": {"beta": 0.2},
    "Nested": {"margin": {"size": 1, "shape": [[1, "a"]]}, "anything": {"a": [1]}},
}


@pytest.mark.parametrize("name", PLUGGED_IN)
def test_classes_of_ones_own_pass(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(f"plugged_{name.lower()}.py").write_text(PLUG_IN)
    path = f"plugged_{name.lower()}.{name}"
    key = "--model.init_args.objective"
    settings = [
        part for one, value in PLUGGED_IN[name].items() for part in (f"{key}.init_args.{one}", str(value))
    ]
    check_command("fit", [*map(str, axes()), key, path, *settings, "--print_config"])


def test_what_python_imports_elsewhere_is_left_to_python():
    assert isinstance(find_class("lightning.pytorch.Trainer"), ClassSource)
    assert made("lightning.pytorch.Trainer") is Trainer
    assert find_class("torch.optim.AdamW").node.name == torch.optim.AdamW.__name__
    assert "beta" in signature(find_class("pl_prefopt.objectives.DPO")).settings
    assert pl_prefopt.objectives.DPO(beta=0.3).beta == 0.3


def test_the_words_that_a_setting_takes_are_those_that_lightning_and_transformers_take():
    trainer, callbacks = "lightning.pytorch.trainer.trainer", "lightning.pytorch.callbacks"
    with pytest.raises(MisconfigurationException, match="one of") as refused:
        Trainer(profiler="nothing", logger=False)
    taken = {
        (trainer, "strategy"): {"auto", *StrategyRegistry.available_strategies()},
        (trainer, "accelerator"): {"auto", "gpu", *AcceleratorRegistry.available_accelerators()},
        (trainer, "gradient_clip_algorithm"): set(GradClipAlgorithmType.supported_types()),
        (trainer, "profiler"): set(ast.literal_eval(str(refused.value).rpartition("one of ")[2])),
        (f"{callbacks}.early_stopping", "mode"): set(EarlyStopping.mode_dict),
        (f"{callbacks}.batch_size_finder", "mode"): set(BatchSizeFinder.SUPPORTED_MODES),
        (f"{callbacks}.lr_finder", "mode"): set(LearningRateFinder.SUPPORTED_MODES),
        (f"{callbacks}.timer", "interval"): set(timer.Interval),
        ("pl_prefopt.modules.schedule", "name"): {kind.value for kind in SchedulerType},
    }
    for (module, name), words in taken.items():
        assert set(known_texts(module, name).words) == words, name
    for mode in known_texts(f"{callbacks}.model_checkpoint", "mode").words:
        ModelCheckpoint(mode=mode)
    for text in ("00:12:00:00", "100:00:00:01"):
        assert known_texts(f"{callbacks}.timer", "duration").take(text)
        timer.Timer(duration=text)
    assert known_texts(trainer, "val_check_interval").take("00:12:00:00")
    assert known_texts(trainer, "devices").take("0, 1")


@pytest.mark.parametrize("kind", _OFFERED)
def test_a_class_without_its_module_is_refused_only_where_every_such_class_is_known(kind):
    paths = ["lightning.pytorch.plugins", "lightning.pytorch.plugins.environments", *_OFFERED[kind]]
    base = next(f"{path}.{kind}" for path in paths if hasattr(importlib.import_module(path), kind))
    known = {path.rpartition(".")[2] for path in _known((find_class(base),))}
    for package in _OFFERED[kind]:
        for name, one in vars(importlib.import_module(package)).items():
            if inspect.isclass(one) and issubclass(one, made(base)) and "_graveyard" not in one.__module__:
                assert name in known or inspect.isabstract(one) or one is made(base), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--best.monitor", "val/loss"], "best.monitor: lower values of val/loss are better, but "
         "`best.mode` is max: set it to min."),
        (["--best.monitor", "val/marginal_0"], "'val/marginal_0' is called 'val/log_ratio_margin_0' now"),
        (["--best.monitor", "val/kl_0", "--best.mode", "min"], "'val/kl_0' is called 'val/log_ratio_0' now"),
        (["-c", "stopping.yaml"], "stopping.yaml: trainer.callbacks.0.init_args.monitor: the metric "
         "'val/marginal_1' is called 'val/log_ratio_margin_1' now."),
        (["--best.monitor", "val/my_own", "--best.mode", "min"], None),
        (["--best.monitor", "val/log_ratio_0", "--best.mode", "min"], None),
    ],
)  # fmt: skip
def test_monitored_metrics_are_those_of_the_registry(settings, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stopping.yaml").write_text(
        "trainer:\n  callbacks:\n    - class_path: lightning.pytorch.callbacks.EarlyStopping\n"
        "      init_args: {monitor: val/marginal_1}\n"
    )
    settings = ["--model.objective", "pl_prefopt.objectives.DPO", *settings]
    if said is None:
        check_command("fit", settings)
        return
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_command("fit", settings)


def test_metrics_read_from_source_are_those_that_python_has():
    import pl_prefopt.metrics

    text = (
        "name",
        "help",
        "range",
        "unit",
        "better",
        "logged",
        "interval",
        "plot",
        "headline",
        "progress_bar",
    )
    read = [[getattr(info, name) for name in text] for info in known_metrics.registered()]
    assert read == [[getattr(info, name) for name in text] for info in pl_prefopt.metrics.REGISTRY]


def test_a_word_may_take_the_place_of_a_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("split.yaml").write_text(
        "trainer:\n  strategy:\n    class_path: pl_prefopt.modules.FSDP2Strategy\n"
        "    init_args: {data_parallel_size: 2}\n"
    )
    settings = ["--model.objective", "pl_prefopt.objectives.DPO", "-c", "split.yaml"]
    check_command("validate", [*settings, "--trainer.strategy", "auto"])
    with pytest.raises(ConfigError, match="dpp"):
        check_command("validate", [*settings, "--trainer.strategy", "dpp"])

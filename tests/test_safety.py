"""Nothing that a run reads can run code, and nothing is told to anybody."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as sharded
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, OptimizerCallable

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.cli.config_diagnostics import make_importable
from pl_prefopt.cli.export import read_policy_spec
from pl_prefopt.cli.parser import Parser, RefusedError
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.modules import FSDP2Strategy, PreferenceModule, SafeCheckpointIO, read_checkpoint
from pl_prefopt.modules.checkpoint_files import read_head, read_weights
from pl_prefopt.modules.shard_files import check_shards, read_index
from pl_prefopt.policies import PolicySpec, build_frozen, build_policy
from pl_prefopt.references import NamedAdapter
from tests.cli.test_commands import axes
from tests.runs import pair_rows


class Payload:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def harm(tmp_path):
    """Where a payload would leave its mark."""
    return tmp_path / "harm"


def test_the_payload_works(harm, tmp_path):
    torch.save({"state_dict": Payload(harm)}, tmp_path / "evil.ckpt")
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert harm.is_dir()


def test_code_in_a_checkpoint_is_not_run(harm, tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Payload(harm)}, path)
    for load in (
        read_checkpoint,
        SafeCheckpointIO().load_checkpoint,
        lambda path: SafeCheckpointIO().load_checkpoint(path, weights_only=False),
    ):
        with pytest.raises(ConfigError, match="holds code instead of plain weights"):
            load(path)
    assert not harm.exists()


def test_the_command_line_runs_no_code_of_a_checkpoint_either(prefopt, tiny_model, harm, tmp_path):
    torch.save({"state_dict": Payload(harm)}, tmp_path / "evil.ckpt")
    (tmp_path / "rows.json").write_text(json.dumps(pair_rows(4)))
    settings = (
        "--data.train",
        "rows.json",
        "--data.held_out",
        "0",
        "--model.init_args.policy.name",
        tiny_model,
    )
    said = prefopt.fails("fit", *axes(), *settings, "--run_dir", "run", "--ckpt_path", "evil.ckpt")
    assert "holds code" in said
    assert not harm.exists()


def write_shards(folder, *, rate=0.1, index=None, rest=None):
    """Write a folder of shards, in which one thing or another may be something else."""
    weights = {"state_dict": {"a": torch.arange(2.0)}, "optimizer_0": {"param_groups": [{"lr": rate}]}}
    sharded.save(weights, checkpoint_id=folder, no_dist=True)
    torch.save(rest or {"global_step": 3}, folder / "meta.pt")
    if index is not None:
        (folder / ".metadata").write_bytes(index)


def by_way_of_an_import(folder):
    """Return an index that gets at ``os`` through a module whose classes an index names."""
    words = ("torch.distributed.checkpoint.metadata", "os.mkdir", str(folder))
    module, name, argument = (b"\x8c" + bytes([len(word)]) + word.encode() for word in words)
    return b"\x80\x04" + module + name + b"\x93" + argument + b"\x85R."


def test_shards_without_code_are_read(tmp_path):
    write_shards(tmp_path / "good.ckpt")
    check_shards(tmp_path / "good.ckpt")
    assert read_weights(tmp_path / "good.ckpt")["a"].tolist() == [0, 1]
    head = read_head(tmp_path / "good.ckpt")
    assert (head.rest, head.shapes) == ({"global_step": 3}, {"a": torch.Size([2])})


HARMS = {
    "index": lambda harm: {"index": pickle.dumps(Payload(harm))},
    "index, by way of an import": lambda harm: {"index": by_way_of_an_import(harm)},
    "object": lambda harm: {"rate": Payload(harm)},
    "rest": lambda harm: {"rest": Payload(harm)},
}


@pytest.mark.parametrize("where", HARMS)
def test_code_in_shards_is_not_run(harm, tmp_path, where):
    path = tmp_path / "evil.ckpt"
    write_shards(path, **HARMS[where](harm))
    with pytest.raises(ConfigError, match="code"):
        FSDP2Strategy().load_checkpoint(path, weights_only=False)
    for read in (read_head, read_weights):
        with suppress(ConfigError):  # neither reads all of it
            read(path)
    assert not harm.exists()
    with suppress(sharded.CheckpointException):
        sharded.load({"optimizer_0": {"param_groups": [{"lr": 0.0}]}}, checkpoint_id=path, no_dist=True)
    torch.load(path / "meta.pt", weights_only=False)
    assert harm.is_dir()  # torch by itself runs it


def test_packed_shards_are_refused_since_what_is_in_them_cannot_be_seen(tmp_path):
    path = tmp_path / "packed.ckpt"
    write_shards(path)
    index = read_index(path)
    for place in index.storage_data.values():
        place.transform_descriptors = ["stream.zstd"]
    write_shards(path, index=pickle.dumps(index))
    with pytest.raises(ConfigError, match="packed"):
        check_shards(path)


def test_code_in_a_cached_choice_is_not_run(harm, tmp_path):
    from pl_prefopt.data.store import _read_choice

    np.save(tmp_path / "held_out.npy", np.array([Payload(harm)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is corrupt"):
        _read_choice(tmp_path / "held_out.npy", 1)
    assert not harm.exists()


@pytest.mark.parametrize("build", [build_policy, build_frozen])
def test_pickled_weights_of_a_model_are_refused(tiny_model, harm, tmp_path, build):
    shutil.copytree(tiny_model, tmp_path / "pickled")
    for file in (tmp_path / "pickled").glob("*.safetensors*"):
        file.unlink()
    torch.save(Payload(harm), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        build(PolicySpec(name=str(tmp_path / "pickled")))
    assert not harm.exists()


def test_pickled_weights_of_an_adapter_are_refused(tiny_model, harm, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(Payload(harm), folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match="only safetensors are loaded"):
        build_policy(PolicySpec(name=str(tiny_model), adapter=str(folder)))
    with pytest.raises(ConfigError, match="only safetensors are loaded"):
        NamedAdapter(str(folder)).check(PolicySpec(name=str(tiny_model), lora={"r": 4}))
    assert not harm.exists()


def test_code_of_a_model_is_not_run_unless_asked(tiny_model, harm, tmp_path):
    folder = tmp_path / "remote"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(harm)!r})\nclass Config: pass\n")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        build_policy(PolicySpec(name=str(folder)))
    assert not harm.exists()


def test_an_attention_kernel_from_the_hub_is_code_too():
    with pytest.raises(ConfigError, match="trust_remote_code"):
        PolicySpec(name="nothing", attn_implementation="kernels-community/flash-attn")
    PolicySpec(name="nothing", attn_implementation="kernels-community/flash-attn", trust_remote_code=True)


# -- configurations that name what to call

CALLS = {
    "a function": {"class_path": "os.mkdir", "init_args": {"path": "harm"}},
    "a function, by keywords of its own": {"class_path": "os.mkdir", "dict_kwargs": {"path": "harm"}},
    "a function, by way of another module": {"class_path": "shutil.os.mkdir", "init_args": {"path": "harm"}},
    "a class": {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "harm"]}},
    "a class that can be called": {"class_path": "tests.test_safety.Harmful", "init_args": {"path": "harm"}},
}


class Harmful:
    """Its construction makes a folder."""

    def __init__(self, path: str) -> None:
        os.mkdir(path)

    def __call__(self, *_: object) -> int:
        return 0


def callback(name: str, **settings: object) -> dict[str, object]:
    """A trainer with one of Lightning's callbacks."""
    spec = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": settings}
    return {"trainer": {"callbacks": [spec]}}


def module(**settings: object) -> dict[str, object]:
    """A model, complete but for ``settings``."""
    objective = {"class_path": "pl_prefopt.objectives.DPO"}
    whole = {"policy": {"name": "nothing"}, "objective": objective, **settings}
    return {"model": {"class_path": "pl_prefopt.modules.DPOModule", "init_args": whole}}


# Wherever the parser makes an object of a `class_path`, or could.
CALLED_FROM = {
    "model": lambda call: {"model": call},
    "objective": lambda call: module(objective=call),
    "pairing": lambda call: module(
        objective={"class_path": "pl_prefopt.objectives.DPO", "init_args": {"pairing": call}}
    ),
    "optimiser": lambda call: module(optimizer=call),
    "an optimiser's setting": lambda call: module(
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": call}}
    ),
    "schedule": lambda call: module(schedule=call),
    "policy": lambda call: module(policy=call),
    "a setting of any type": lambda call: module(policy={"name": "nothing", "lora": {"r": call}}),
    "references": lambda call: {"references": {"members": [call]}},
    "callbacks": lambda call: {"trainer": {"callbacks": [call]}},
    "a callable of any kind": lambda call: callback("LambdaCallback", on_fit_start=call),
    "a callable that returns a number": lambda call: callback("ThroughputMonitor", batch_size_fn=call),
    "a callable that returns a tensor": lambda call: callback(
        "StochasticWeightAveraging", swa_lrs=0.1, avg_fn=call
    ),
    "a strategy's hook": lambda call: {
        "trainer": {
            "strategy": {
                "class_path": "lightning.pytorch.strategies.DDPStrategy",
                "init_args": {"ddp_comm_hook": call},
            }
        }
    },
    **{
        key: lambda call, key=key: {"trainer": {key: call}}
        for key in ("logger", "strategy", "plugins", "profiler", "accelerator", "gradient_clip_val")
    },
    "data": lambda call: {"data": {"train": call}},
}


@pytest.fixture(scope="module")
def parser():
    """The command line's parser, with what has classes in it."""
    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(PreferenceModule, "model", subclass_mode=True, required=False)
    parser.add_lightning_class_args(PreferenceDataModule, "data")
    parser.add_lightning_class_args(ReferenceEnsemble, "references")
    return parser


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", CALLED_FROM)
def test_a_configuration_makes_no_call_of_its_own(parser, tmp_path, monkeypatch, place, call):
    monkeypatch.chdir(tmp_path)
    # Refused, or handed on as the plain mapping that it is where a setting takes anything.
    with suppress(ConfigError, MisconfigurationException, ValueError, TypeError):
        parser.instantiate_classes(parser.parse_object(CALLED_FROM[place](CALLS[call])))
    assert not list(tmp_path.iterdir())


def test_without_the_check_the_calls_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    parser.add_argument("--count", type=Callable[[object], int])
    for key, call in (("optimizer", "a function"), ("count", "a class that can be called")):
        with suppress(Exception):
            parser.instantiate_classes(parser.parse_object({key: CALLS[call]}))
        (tmp_path / "harm").rmdir()


def test_an_optimiser_is_a_class_or_a_function_that_says_so(parser):
    for good in ("torch.optim.SGD", "pl_prefopt.modules.base.adamw"):
        parsed = parser.instantiate_classes(parser.parse_object(module(optimizer=good)))
        made = parsed.model.make_optimizer([torch.nn.Parameter(torch.ones(1))])
        assert isinstance(made, torch.optim.Optimizer)
    for bad in ("os.system", "torch.optim.lr_scheduler.StepLR", "collections.OrderedDict"):
        with pytest.raises(RefusedError, match=bad):
            parser.parse_object(module(optimizer=bad))


def test_a_function_can_be_named_where_a_setting_takes_one(parser, tmp_path):
    asked = callback("ThroughputMonitor", batch_size_fn="builtins.len")
    parsed = parser.parse_object(asked)
    assert "batch_size_fn: builtins.len" in parser.dump(parsed)
    (made,) = parser.instantiate_classes(parsed).trainer.callbacks
    assert made.batch_size_fn is len
    for bad in ("os.nothing", "nowhere.at_all", "os.sep", 3):
        with pytest.raises(RefusedError, match="import path of a function"):
            parser.parse_object(callback("ThroughputMonitor", batch_size_fn=bad))


def test_the_working_directory_is_searched_last_and_only_for_what_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "json").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "own_losses.py").write_text(
        "from pl_prefopt.objectives import DPO\nclass Mine(DPO):\n    pass\n"
    )
    before = list(sys.path)
    for settings in ({"data": {"train": "nothing.here"}}, {"a": "json.Thing"}, {"a": ["torch.optim.AdamW"]}):
        make_importable(settings)
        assert sys.path == before
    make_importable({"model": {"init_args": {"objective": {"class_path": "own_losses.Mine"}}}})
    assert sys.path == [*before, str(tmp_path)]


@pytest.mark.parametrize("call", CALLS)
def test_the_settings_of_a_run_to_export_make_no_call(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for policy in (CALLS[call], {"name": "nothing", "lora": {"r": CALLS[call]}}, {"name": CALLS[call]}):
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps({"model": {"init_args": {"policy": policy}}}))
        with suppress(ConfigError):
            read_policy_spec(file)
        assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_on_local_files_asks_nobody(prefopt, tiny_model, tmp_path, monkeypatch):
    calls = []

    def guard(*args, **kwargs):
        calls.append(args)
        raise OSError("no network in this test")

    # As for a user who is online: the libraries are not told to stay off the network.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(socket, "getaddrinfo", guard)
    monkeypatch.setattr(socket.socket, "connect", guard)
    (tmp_path / "rows.json").write_text(json.dumps(pair_rows(6)))  # a list, which `datasets` reads
    settings = ("--data.train", "rows.json", "--data.held_out", "2")
    policy = ("--model.init_args.policy.name", tiny_model, "--run_dir", "run")
    prefopt("fit", *axes(), *settings, *policy)
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "adapter")
    assert calls == []

"""Models that two processes load together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from pl_prefopt.errors import ConfigError, PrefOptError
from pl_prefopt.policies import (
    PolicySpec,
    build_frozen,
    build_policy,
    load_split,
    sketch_frozen,
    sketch_policy,
)
from tests.runs import LORA

Make = Callable[[PolicySpec], nn.Module]


def save_tied_model(folder: str) -> None:
    """Write a model with one table of embeddings for both ends, of a length that two can't share evenly."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    torch.manual_seed(0)
    config = Gemma3TextConfig(vocab_size=401, hidden_size=32, intermediate_size=48, **sizes)
    Gemma3ForCausalLM(config).save_pretrained(folder)


def loaded(folder: Path, tiny_model: str) -> dict[str, Any]:
    """Load each kind of model in both processes; return what this one has seen of it."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    tied, adapter = str(folder / "tied"), str(folder / "adapter")
    if dist.get_rank() == 0:
        save_tied_model(tied)
        build_policy(PolicySpec(name=tied, lora={**LORA, "init_lora_weights": False})).save_pretrained(
            adapter
        )
    dist.barrier()
    pissa = {**LORA, "init_lora_weights": "pissa"}
    policy, frozen = (build_policy, sketch_policy), (build_frozen, sketch_frozen)
    specs = {
        "all weights": (PolicySpec(name=tiny_model, gradient_checkpointing=True), *policy),
        "tied": (PolicySpec(name=tied), *policy),
        "bfloat16, new adapter": (PolicySpec(name=tied, lora=LORA, dtype="bfloat16"), *policy),
        "adapter": (PolicySpec(name=tied, adapter=adapter), *policy),
        "adapter that starts from the weights": (PolicySpec(name=tied, lora=pissa), *policy),
        "frozen": (PolicySpec(name=tied), *frozen),
        "not what it looks like": (PolicySpec(name=tied, dtype="bfloat16"), build_frozen, as_float32),
    }
    said = {name: compare(mesh, *spec) for name, spec in specs.items()}
    try:
        load_split(PolicySpec(name=tied), missing, sketch_frozen, mesh, precision="32-true")
    except PrefOptError as error:
        said["failed"] = f"{type(error).__name__}: {error}"
    return said


def as_float32(spec: PolicySpec) -> nn.Module:
    return sketch_frozen(PolicySpec(name=spec.name))


def missing(spec: PolicySpec) -> nn.Module:
    assert dist.get_rank() == 0, "the first process alone loads"
    raise ConfigError("No weights here.")


def compare(mesh: DeviceMesh, spec: PolicySpec, build: Make, sketch: Make) -> dict[str, Any]:
    """Load the model split and whole; say where they differ."""
    built = []

    def counted(spec: PolicySpec) -> nn.Module:
        built.append(spec)
        return build(spec)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.manual_seed(5)
        split = load_split(spec, counted, sketch, mesh, precision="32-true")
    torch.manual_seed(5)
    whole = build(spec)
    table, head = split.get_input_embeddings().weight, split.get_output_embeddings().weight
    ids = torch.arange(7, 25).view(2, 9)
    return {
        "built": len(built),
        "warned": any("loads all of" in str(each.message) for each in warned),
        "differ": sorted(differing(whole, split)),
        "split": all(isinstance(weight, DTensor) for weight in split.parameters()),
        "tied": table is head,
        # At last, since it leaves some weights gathered.
        "logits": (split(input_ids=ids).logits - whole(input_ids=ids).logits).abs().max().item(),
    }


def differing(whole: nn.Module, split: nn.Module) -> set[str]:
    """The names of weights, buffers and parts that are not the same in both."""
    weights, parts = dict(split.named_parameters()), dict(split.named_modules())
    names = set(weights) ^ {name for name, _ in whole.named_parameters()}
    for name, weight in whole.named_parameters():
        found = weights[name]
        same = torch.equal(found.full_tensor(), weight) and found.dtype == weight.dtype
        if not same or found.requires_grad != weight.requires_grad:
            names.add(name)
    buffers = dict(split.named_buffers())
    names |= {name for name, each in whole.named_buffers() if not torch.equal(each, buffers[name])}
    names |= {name for name, part in whole.named_modules() if part.training != parts[name].training}
    return names

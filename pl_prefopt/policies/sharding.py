"""Sharding a model's weights with FSDP2."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies.adapters import keeps_base
from pl_prefopt.policies.spec import PolicySpec

_COMPUTED_IN = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def check_shardable(spec: PolicySpec, mesh: DeviceMesh) -> None:
    """Raise a ``ConfigError`` if the policy can't be sharded over ``mesh``; no model is loaded yet."""
    check_sizes(mesh["data_parallel"].size(), mesh["tensor_parallel"].size(), processes=mesh.size())
    check_splittable(spec)


def check_sizes(data_parallel: int | str, tensor_parallel: int | str, *, processes: int) -> None:
    """Raise a ``ConfigError`` if a strategy's mesh sizes don't match the number of processes.

    Args:
        data_parallel: the strategy's ``data_parallel_size``; ``auto`` is always accepted.
        tensor_parallel: the strategy's ``tensor_parallel_size``; likewise.
        processes: the world size.
    """
    if isinstance(tensor_parallel, int) and tensor_parallel > 1:
        raise ConfigError(
            f"Expected trainer.strategy.init_args.tensor_parallel_size to be 1, got {tensor_parallel}: set "
            f"it, and set data_parallel_size to the number of processes, {processes} here."
        )
    if isinstance(data_parallel, int) and tensor_parallel == 1 and data_parallel != processes:
        raise ConfigError(
            "Expected trainer.strategy.init_args.data_parallel_size to be the number of processes, "
            f"trainer.devices times trainer.num_nodes, {processes} here; got {data_parallel}: set it."
        )


def check_splittable(spec: PolicySpec) -> None:
    """Raise a ``ConfigError`` if the policy's weights can't be sharded."""
    if spec.four_bit is not None:
        raise ConfigError(
            "policy.four_bit weights can't be sharded: use trainer.strategy ddp, or load the base in "
            "bfloat16 (policy.four_bit: null, policy.dtype: bfloat16). To continue training from an adapter "
            "on 4-bit weights, set policy.name FOLDER after `prefopt export CHECKPOINT --out FOLDER --merge "
            "true --dtype float32`."
        )
    if spec.resize_embeddings is not None:
        raise ConfigError(
            "policy.resize_embeddings can't be combined with sharded weights: use trainer.strategy ddp, or "
            "resize the model with transformers (resize_token_embeddings), save it together with the "
            "tokeniser and name that folder in policy.name."
        )
    if spec.lora is not None and not keeps_base(spec.lora):
        raise ConfigError(
            "policy.lora with init_lora_weights, bias or layer_replication that change the base can't be "
            "sharded: use trainer.strategy ddp, or plain LoRA settings."
        )


def shard(model: nn.Module, mesh: DeviceMesh, *, precision: str) -> None:
    """Shard every weight of a model; a layer is gathered while it is computed.

    ``model`` becomes the FSDP root. Weights outside the layers - embeddings, last norm, head - are gathered
    at their first use in a step and sharded again after the backward pass.

    Args:
        model: a transformers model, with or without a PEFT wrapper, not on any GPU yet.
        mesh: a mesh with a dimension ``data_parallel``.
        precision: the trainer's. In mixed precision weights are gathered in the lower precision, and
            gradients reduced in float32.

    Raises:
        ConfigError: if the model's class doesn't name its layers.
    """
    settings = _settings(mesh, precision)
    layers = layers_of(model)
    if not layers:
        raise ConfigError(
            f"{type(_base(model)).__name__} doesn't name its layers (_no_split_modules), so its weights "
            "can't be sharded: use `-c hardware/lora_ddp`."
        )
    for layer in layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)


def shard_whole(module: nn.Module, mesh: DeviceMesh, *, precision: str) -> None:
    """Shard every weight of a small module, which is gathered when it is called.

    Args:
        module: a module, such as a head.
        mesh: a mesh with a dimension ``data_parallel``.
        precision: the trainer's.
    """
    fully_shard(module, **_settings(mesh, precision))


def _settings(mesh: DeviceMesh, precision: str) -> dict[str, Any]:
    computed_in = _COMPUTED_IN.get(precision)
    policy = MixedPrecisionPolicy(
        param_dtype=computed_in, reduce_dtype=None if computed_in is None else torch.float32
    )
    return {"mesh": mesh["data_parallel"], "mp_policy": policy}


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered one at a time: those in the class's ``_no_split_modules``."""
    kinds = set(getattr(_base(model), "_no_split_modules", None) or ())
    return [part for part in model.modules() if type(part).__name__ in kinds]


def _base(model: Any) -> nn.Module:
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base

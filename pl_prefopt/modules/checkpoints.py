"""What a checkpoint holds, and when it is refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules.checkpoint_files import is_sharded
from pl_prefopt.policies import PolicySpec, alters_base

_KEY = "pl_prefopt"
_IDENTITY = "base_identity"


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def describe(
    method: str, policy: PolicySpec, base_identity: str, adapter_identity: str = ""
) -> dict[str, str]:
    """Return what a checkpoint says of its run beside the weights.

    A base is known by its weights, so that its folder may move, and so is an adapter that training started
    from. Settings of an adapter such as ``lora_alpha`` decide what its weights mean, though not their shapes;
    its dropout does not. Where PEFT writes to the base, its version decides what the base is.
    """
    described = {"method": method, "base": policy.name, _IDENTITY: base_identity}
    if policy.lora is not None:
        adapter = {key: value for key, value in policy.lora.items() if key != "lora_dropout"}
        described["policy.lora"] = json.dumps(adapter, sort_keys=True, default=str)
        if alters_base(policy.lora):
            described["peft"] = version("peft")
    if adapter_identity:
        described["policy.adapter"] = adapter_identity
    return described


def describe_optimizer(optimizer: Optimizer | None = None) -> dict[str, str]:
    """Return what a checkpoint says of its optimiser, if there is one: another couldn't use its states."""
    if optimizer is None:
        return {}
    kind = type(optimizer)
    return {"optimizer": f"{kind.__module__.split('.')[0]} {kind.__name__}"}


def save_description(checkpoint: dict[str, Any], description: dict[str, str]) -> None:
    """Write the run's description into a checkpoint."""
    checkpoint[_KEY] = description


def refuse_shards(path: Path) -> None:
    """Raise a ``ConfigError`` if ``path`` is a checkpoint that only a run with split weights can read."""
    if is_sharded(path):
        raise ConfigError(
            f"{path} holds the shards of a run whose weights were split between processes, and this run's "
            "are not: use the same hardware configuration and as many processes as you like, or get the "
            f"model with `prefopt export {path} --out FOLDER` and name it in policy.adapter or policy.name; "
            "an adapter becomes a part of the model with `--merge true --dtype float32`."
        )


def check_description(checkpoint: Mapping[str, Any], description: Mapping[str, str], *, else_: str) -> None:
    """Refuse a checkpoint of another method, base or adapter.

    Args:
        checkpoint: as Lightning read it.
        description: of the run that is asked for.
        else_: what else to do than to use that run's settings.

    Raises:
        ConfigError: saying what differs.
    """
    found = checkpoint.get(_KEY, {})
    if _IDENTITY in found and _IDENTITY in description:
        if found[_IDENTITY] != description[_IDENTITY]:
            raise ConfigError(
                f"The checkpoint was made with the base '{found['base']}', whose weights are not those of "
                f"this run's '{description['base']}': name the base that it was made with in policy.name, or "
                f"{else_}."
            )
        description = {key: value for key, value in description.items() if key not in ("base", _IDENTITY)}
    for key, wanted in description.items():
        if key in found and found[key] != wanted:
            raise ConfigError(
                f"The checkpoint was made with {key} '{found[key]}', but this run has '{wanted}': "
                f"use the configuration that the checkpoint was made with, or {else_}."
            )


def check_fits(
    checkpoint: dict[str, Any],
    shapes: Mapping[str, torch.Size],
    description: dict[str, str],
    *,
    trained: Mapping[str, Tensor],
    known: Collection[str],
) -> None:
    """Refuse a checkpoint of another method or base, or one whose weights wouldn't be used.

    Args:
        checkpoint: as Lightning read it.
        shapes: of the weights in it, by name.
        description: of the run that wants to load it.
        trained: the parameters that it must hold, by name.
        known: the names of all weights that it may hold.

    Raises:
        ConfigError: saying what differs.
    """
    check_description(checkpoint, description, else_="start without ckpt_path")
    unused = [name for name in shapes if name not in known]
    if unused:
        raise ConfigError(
            f"The checkpoint holds {len(unused)} weights that this run has no place for, such as "
            f"'{unused[0]}': policy.lora or policy.adapter differs from the run that made it."
        )
    unfit = [name for name, weight in trained.items() if shapes.get(name) != weight.shape]
    if unfit:
        raise ConfigError(
            f"The checkpoint lacks {len(unfit)} of the {len(trained)} weights that this run trains, or has "
            f"them in another shape, such as '{unfit[0]}': policy.lora or policy.adapter differs from the "
            "run that made it."
        )

"""The contents of checkpoints, and the checks that refuse one that doesn't fit a run."""

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
    """Return the description of a run that is saved with its weights.

    A base is identified by its weights, so that its folder may move, and so is an adapter that training
    started from. Settings of an adapter such as ``lora_alpha`` determine what its weights mean, though not
    their shapes; its dropout doesn't. Where PEFT writes to the base, its version determines the base.
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
    """Return the description of the optimiser, if there is one: another class couldn't use its states."""
    if optimizer is None:
        return {}
    kind = type(optimizer)
    return {"optimizer": f"{kind.__module__.split('.')[0]} {kind.__name__}"}


def save_description(checkpoint: dict[str, Any], description: dict[str, str]) -> None:
    """Write the run's description into a checkpoint."""
    checkpoint[_KEY] = description


def refuse_shards(path: Path) -> None:
    """Raise a ``ConfigError`` if ``path`` is a checkpoint that only a run with sharded weights can read."""
    if is_sharded(path):
        raise ConfigError(
            f"{path} is the checkpoint of a run with sharded weights, and this run's weights aren't sharded: "
            "use the same hardware configuration, with any number of processes, or get the model with "
            f"`prefopt export {path} --out FOLDER` and name it in policy.adapter or policy.name; an adapter "
            "is merged into the model with `--merge true --dtype float32`."
        )


def check_description(checkpoint: Mapping[str, Any], description: Mapping[str, str], *, else_: str) -> None:
    """Refuse a checkpoint of another method, base or adapter.

    Args:
        checkpoint: as Lightning read it.
        description: of the current run.
        else_: the alternative to using the checkpoint's settings, for the message.

    Raises:
        ConfigError: naming the difference.
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
    needed: Mapping[str, Tensor],
    known: Collection[str],
) -> None:
    """Refuse a checkpoint of another method or base, or one with missing or unused weights.

    Args:
        checkpoint: as Lightning read it.
        shapes: the shapes of its weights, by name.
        description: of the run that loads it.
        needed: the weights that it must contain, by name.
        known: the names of all weights that it may contain.

    Raises:
        ConfigError: naming the difference.
    """
    check_description(checkpoint, description, else_="start without ckpt_path")
    unused = [name for name in shapes if name not in known]
    if unused:
        raise ConfigError(
            f"The checkpoint holds {len(unused)} weights that this run has no place for, such as "
            f"'{unused[0]}': policy.lora or policy.adapter differs from the run that made it."
        )
    unfit = [name for name, weight in needed.items() if shapes.get(name) != weight.shape]
    if unfit:
        raise ConfigError(
            f"The checkpoint lacks {len(unfit)} of the {len(needed)} weights that this run trains, or has "
            f"them in another shape, such as '{unfit[0]}': policy.lora or policy.adapter differs from the "
            "run that made it."
        )

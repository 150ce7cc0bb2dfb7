"""Heads on the policy's hidden states, trained, checkpointed and sharded with the policy."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pl_prefopt.errors import ConfigError
from pl_prefopt.heads import Head
from pl_prefopt.policies import shard_whole
from pl_prefopt.requests import OutputHead
from pl_prefopt.scoring import base_model


def build_heads(heads: Mapping[str, OutputHead], policy: nn.Module) -> nn.ModuleDict:
    """Build the heads that an objective requests, by name, on the policy's device."""
    size = base_model(policy).config.get_text_config().hidden_size
    device = next(policy.parameters()).device
    return nn.ModuleDict({name: head.build(size).to(device) for name, head in heads.items()})


def shard_heads(heads: nn.ModuleDict, mesh: DeviceMesh, *, precision: str) -> None:
    """Shard every head, with rank 0's initial values. A reward head computes in float32 all the same.

    Args:
        heads: the heads by name.
        mesh: the mesh that the policy is sharded over.
        precision: the trainer's precision.

    Raises:
        ConfigError: if a head has a scalar parameter, such as PAL-B's scale.
    """
    for head in heads.values():
        check_no_scalars(head)
        for weight in head.parameters():
            dist.broadcast(weight.data, 0)
        shard_whole(head, mesh, precision="32-true" if isinstance(head, Head) else precision)


def check_no_scalars(head: nn.Module) -> None:
    """Raise a ``ConfigError`` if a head has a scalar parameter, such as PAL-B's scale."""
    for name, weight in head.named_parameters():
        if weight.dim() == 0:
            raise ConfigError(
                f"{type(head).__name__} has a single number, '{name}', which FSDP2 can't shard: use "
                "another strategy, such as ddp."
            )

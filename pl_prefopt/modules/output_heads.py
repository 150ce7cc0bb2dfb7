"""Heads on the policy's hidden states: trained, checkpointed and sharded along with the policy."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pl_prefopt.policies import shard_whole
from pl_prefopt.requests import OutputHead
from pl_prefopt.scoring import base_model


def build_heads(heads: Mapping[str, OutputHead], policy: nn.Module) -> nn.ModuleDict:
    """Build the heads that an objective asked for, by name, on the policy's device."""
    size = base_model(policy).config.get_text_config().hidden_size
    device = next(policy.parameters()).device
    return nn.ModuleDict({name: head.build(size).to(device) for name, head in heads.items()})


def shard_heads(heads: nn.ModuleDict, mesh: DeviceMesh, *, precision: str) -> None:
    """Leave each rank its shard of every head, of the one that rank 0 initialised.

    Args:
        heads: by name.
        mesh: over which the policy is sharded.
        precision: the trainer's.
    """
    for head in heads.values():
        for weight in head.parameters():
            dist.broadcast(weight.data, 0)
        shard_whole(head, mesh, precision=precision)

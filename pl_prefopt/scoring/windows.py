"""Shortening a model's sliding windows, so that a probe of a few tokens exceeds them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from pl_prefopt.scoring.inputs import base_model

_LIMITS = re.compile(r"window(?!.*(layers|pattern))|chunk(?!.*feed_forward)|local_attention$|index_topk$")
"""Settings that may limit a token's attention span, or change attention in longer rows."""

SHORT = 3
"""The length of a shortened window."""


def window_settings(model: nn.Module) -> dict[str, int]:
    """Return the settings of a model that may be window lengths above ``SHORT``."""
    found: dict[str, int] = {}
    for holder in _holders(model):
        for name, value in _limits(holder):
            found[name] = max(value, found.get(name, 0))
    return found


@contextmanager
def shortened(model: nn.Module, names: Mapping[str, int]) -> Iterator[None]:
    """Shorten windows in the model's configurations, its layers, and masks that are buffers.

    Args:
        model: the policy or a reference.
        names: the settings to shorten, with their values.
    """
    with ExitStack() as stack:
        for holder in _holders(model):
            for name, value in _limits(holder):
                if name in names:
                    stack.callback(setattr, holder, name, value)
                    setattr(holder, name, SHORT)
        for module in model.modules():
            for name, buffer in list(module._buffers.items()):
                if names and buffer is not None and _is_banded(buffer):
                    stack.callback(module._buffers.__setitem__, name, buffer)
                    module._buffers[name] = buffer.triu(1 - SHORT)
        yield


@contextmanager
def without_own_masks(model: nn.Module) -> Iterator[int]:
    """Empty the causal masks that a model keeps as buffers; return their columns, 0 if there are none."""
    found = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and _is_square(buffer)
    ]
    try:
        for module, name, buffer in found:
            module._buffers[name] = torch.zeros_like(buffer)
        yield min((buffer.shape[-1] for *_, buffer in found), default=0)
    finally:
        for module, name, buffer in found:
            module._buffers[name] = buffer


def _holders(model: nn.Module) -> list[Any]:
    """Return every module and every configuration, once."""
    holders: dict[int, Any] = {}
    base = base_model(model)
    for module in (*model.modules(), base):
        config = getattr(module, "config", None)
        nested = [] if config is None else [config, *vars(config).values()]
        for holder in (module, *(part for part in nested if isinstance(part, PretrainedConfig))):
            holders[id(holder)] = holder
    return list(holders.values())


def _limits(holder: Any) -> list[tuple[str, int]]:
    return [
        (name, value)
        for name, value in vars(holder).items()
        if type(value) is int and value > SHORT and _LIMITS.search(name)
    ]


def _is_square(buffer: Tensor) -> bool:
    flags = buffer.dtype in (torch.bool, torch.uint8)
    return flags and buffer.dim() > 1 and buffer.shape[-1] == buffer.shape[-2] > SHORT


def _is_banded(buffer: Tensor) -> bool:
    """Whether flags form a lower triangle without its far corner."""
    if not _is_square(buffer) or buffer.triu(1).any():
        return False
    return bool(buffer[..., -1, -1].all()) and not bool(buffer[..., -1, 0].any())

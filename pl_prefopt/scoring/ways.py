"""The ways of attending to prefix trees, and what is to be known about a model before one is probed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pl_prefopt.attention import AUTO, FLEX, HALF, TREE_VARLEN, wanted
from pl_prefopt.scoring.inputs import base_model, computed_in

SDPA = "sdpa"
BY_KERNELS = frozenset({TREE_VARLEN, FLEX})
"""Attentions that skip what is masked, and whose gradients a probe compares as well."""


def ways(name: str, loaded: str, device: torch.device) -> tuple[str, ...]:
    """Return the attentions that are probed, the fastest first.

    Args:
        name: the attention that is wanted.
        loaded: the one that the model was loaded with.
        device: where the model is.

    >>> ways("auto", "sdpa", torch.device("cuda")), ways("auto", "sdpa", torch.device("cpu"))
    (('tree_varlen', 'flex_attention', 'sdpa'), ('sdpa',))
    >>> ways("tree_varlen", "sdpa", torch.device("cpu")), ways("eager", "eager", torch.device("cuda"))
    (('tree_varlen',), ('eager',))
    """
    if name != AUTO:
        return (name,)
    ours = (TREE_VARLEN, FLEX) if loaded == SDPA else (TREE_VARLEN,)
    return (*ours, loaded) if device.type == "cuda" else (loaded,)


def ways_of(model: nn.Module, device: torch.device) -> tuple[str, ...]:
    """Return ``ways`` of a model."""
    return ways(*wanted(base_model(model)), device)


def unsuited(model: nn.Module, way: str) -> str | None:
    """Return why a model can't attend in one of our ways that a probe may not find, ``None`` if it may.

    A probe runs without dropout, and a model whose attention can't be exchanged would attend as before.
    """
    base = base_model(model)
    loaded, name = wanted(base).loaded, type(base).__name__
    if way not in BY_KERNELS or way == loaded:
        return None
    if not base._can_set_attn_implementation():
        return f"{name} has an attention of its own instead of {way}"
    if way == TREE_VARLEN and loaded != SDPA:
        return f"transformers doesn't run {name} with {SDPA}, nor is it with {way}"
    if way == FLEX and not base._supports_flex_attn:
        return f"transformers doesn't run {name} with {way}"
    rate = _attention_dropout(base.config.get_text_config())
    return f"{way} has no dropout, but {name}'s {rate} isn't 0" if rate else None


def presumed(model: nn.Module, device: torch.device) -> str:
    """Return the way that a model is likely to attend in, without a probe; for planning.

    FlexAttention is passed over: its block masks can't be made of fake tensors. Masks take more memory.
    """
    found = ways_of(model, device)
    dtype = computed_in(model, torch.device("cpu"))  # where fake tensors are, and so autocast
    fits = found[0] == TREE_VARLEN and dtype in HALF and unsuited(model, TREE_VARLEN) is None
    if fits:
        return TREE_VARLEN
    return wanted(base_model(model)).loaded if found[-1] == FLEX else found[-1]


def _attention_dropout(config: Any) -> str | None:
    """Return the name of a dropout rate of the attention scores that isn't 0."""
    rates = (key for key, value in config.to_dict().items() if isinstance(value, float) and value)
    return next((key for key in rates if key.startswith("att") and "drop" in key), None)


@contextmanager
def attending(model: nn.Module, way: str) -> Iterator[Callable[[], None]]:
    """Make a model attend in one of the ways within the context, and afterwards where the yielded is called.

    Our own attention computes every way of a model that was loaded with SDPA, and such a model keeps it: it
    may have other scorers.
    """
    base, kept = base_model(model), list[bool]()
    before, loaded = base.config._attn_implementation, wanted(base).loaded
    ours = way == TREE_VARLEN or (loaded == SDPA and (way == FLEX or before == TREE_VARLEN))
    name = TREE_VARLEN if ours else way
    if name != before:
        base.set_attn_implementation(name)
    try:
        yield lambda: kept.append(True)
    finally:
        if name != before and not kept:
            base.set_attn_implementation(before)

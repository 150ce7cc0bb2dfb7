"""The ways of attending to prefix trees, and what is to be known about a model before one is probed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pl_prefopt.attention import AUTO, TREE_VARLEN, wanted
from pl_prefopt.scoring.inputs import base_model

FLEX = "flex_attention"


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
    return (TREE_VARLEN, FLEX, loaded) if device.type == "cuda" else (loaded,)


def ways_of(model: nn.Module, device: torch.device) -> tuple[str, ...]:
    """Return ``ways`` of a model."""
    return ways(*wanted(base_model(model)), device)


def unsuited(model: nn.Module, way: str) -> str | None:
    """Return why a model can't attend in one of our ways that a probe would not find, ``None`` if it may.

    A probe runs without dropout, and a model that was not told to attend otherwise would not differ.
    """
    base = base_model(model)
    if way not in (TREE_VARLEN, FLEX) or way == wanted(base).loaded:
        return None
    dropout = _attention_dropout(base.config.get_text_config())
    if dropout:
        return f"{way} has no dropout, but the model's {dropout} isn't 0"
    if way == FLEX and not getattr(base, "_supports_flex_attn", False):
        return f"transformers doesn't run {type(base).__name__} with {FLEX}"
    return None


def _attention_dropout(config: Any) -> str | None:
    """Return the name of a dropout rate of the attention scores that isn't 0."""
    rates = {key: value for key, value in config.to_dict().items() if isinstance(value, float) and value}
    return next((key for key in rates if key.startswith("att") and "drop" in key), None)


@contextmanager
def attending(model: nn.Module, way: str) -> Iterator[Callable[[], None]]:
    """Make a model attend in one of the ways within the context, and afterwards where the yielded is called.

    Our own attention computes every way that the model wasn't loaded with. It also computes the others, so a
    model that has it keeps it.
    """
    base, kept = base_model(model), []
    before = base.config._attn_implementation
    if way not in (before, wanted(base).loaded) and before != TREE_VARLEN:
        base.set_attn_implementation(TREE_VARLEN)
    try:
        yield lambda: kept.append(True)
    finally:
        if base.config._attn_implementation != before and not kept:
            base.set_attn_implementation(before)

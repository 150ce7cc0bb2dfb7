"""Helpers of all layouts: token tensors, logits, log-probs of labels and properties of models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pl_prefopt.types import TokenTree


def computed_in(model: nn.Module, device: torch.device) -> torch.dtype:
    """Return the dtype of a model's matrix products on ``device``: autocast's, else that of its weights."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


def on_device(values: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return ``values`` as int64 on ``device``, without synchronising with a GPU."""
    return copied_to(torch.tensor(values), device)


def copied_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to ``device``, without synchronising with a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def last_logits(model: nn.Module, count: int, **inputs: Any) -> Tensor:
    """Run ``model`` and return the logits [N, count, V] of its last ``count`` positions.

    Models that support it compute these positions only: all logits would take most of the memory.
    """
    if accepts(model, "logits_to_keep"):
        logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=count).logits
        return logits
    logits = model(**inputs, use_cache=False).logits
    return logits[:, -count:]


def at_least_float32(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or in float64 if they are float64, for sums over a vocabulary."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log softmax(logits)[labels], in float32 or better.

    Args:
        logits: [..., V], of any float type.
        labels: int64 [...].
    """
    logits = at_least_float32(logits)
    return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def response_tokens(tree: TokenTree) -> Tensor:
    """Return int64 [M], the indices of all response tokens in [B · R · T], in order, without padding."""
    padding = ~tree.response_mask.flatten()
    # Their number is known on the CPU; computing it from the mask would synchronise with the device.
    return padding.to(torch.uint8).argsort(stable=True)[: sum(tree.response_lengths)]


def laid_out(places: Tensor, values: Tensor, *, rows: int, width: int, padding: int) -> Tensor:
    """Put ``values`` at ``places`` (row · width + column; rows · width for nowhere) of [rows, width]."""
    size = rows * width
    return values.new_full((size + 1,), padding).scatter(0, places, values)[:size].view(rows, width)


def without_first(place: Tensor, columns: int, width: int) -> Tensor:
    """Convert row · width + column to the place in rows without their first ``columns`` columns."""
    return place - (place // width + 1) * columns


def accepts(model: nn.Module, argument: str) -> bool:
    """Tell whether the (base) model's ``forward`` has the parameter ``argument``."""
    return argument in inspect.signature(base_model(model).forward).parameters


def longest_row(model: nn.Module) -> int | None:
    """Return the model's maximum number of tokens, ``None`` where its configuration has no limit."""
    base = base_model(model)
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    return limit - _unused_positions(base) if limit is not None and limit > 0 else None


_UNUSED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def _unused_positions(base: nn.Module) -> int:
    """Return the number of position embeddings that no token uses.

    RoBERTa's and derived models' position embeddings have a row for padding, and the first token's position
    is the one after it.
    """
    if base not in _UNUSED:
        padding = [
            part.padding_idx + 1
            for name, part in base.named_modules()
            if name.endswith("position_embeddings")
            and isinstance(part, nn.Embedding)
            and part.padding_idx is not None
        ]
        _UNUSED[base] = max(padding, default=0)
    return _UNUSED[base]


def base_model(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode (no dropout) and restore the mode of every submodule afterwards."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True

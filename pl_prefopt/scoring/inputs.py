"""What every layout does to a token tree before and after the model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def left_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move right padding to the left, so that all prompts end in the same column.

    Args:
        ids: int64 [B, P], right padded.
        mask: bool [B, P].

    Returns:
        Both, left padded.

    >>> ids, mask = left_padded(torch.tensor([[5, 6, 0]]), torch.tensor([[True, True, False]]))
    >>> ids.tolist(), mask.tolist()
    ([[0, 5, 6]], [[False, True, True]])
    """
    width = ids.shape[1]
    shift = width - mask.sum(dim=1, keepdim=True)
    source = (torch.arange(width, device=ids.device) - shift) % width
    return ids.gather(1, source), mask.gather(1, source)


def on_device(values: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return ``values`` as int64 on ``device``, without waiting for a GPU to finish what it is at."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def last_logits(model: nn.Module, count: int, **inputs: Any) -> Tensor:
    """Run ``model`` and return the logits [N, count, V] of its last ``count`` positions.

    Models that can are asked for these positions only: the others' logits would be most of the memory.
    """
    if accepts(model, "logits_to_keep"):
        logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=count).logits
        return logits
    logits = model(**inputs, use_cache=False).logits
    return logits[:, -count:]


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log softmax(logits)[labels] in float32.

    Args:
        logits: [..., V], of any float type.
        labels: int64 [...].
    """
    logits = logits.float()
    return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def accepts(model: nn.Module, argument: str) -> bool:
    """Tell whether the (base) model's ``forward`` names ``argument``."""
    return argument in inspect.signature(base_model(model).forward).parameters


def base_model(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model

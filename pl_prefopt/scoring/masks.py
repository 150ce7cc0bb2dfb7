"""Tree-shaped attention masks, in the form that a model takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.scoring.inputs import base_model

FULL, SLIDING = "full_attention", "sliding_attention"


def tree_mask(prompt_mask: Tensor, response: Tensor, filled: Tensor) -> Tensor:
    """Return which position may attend to which, bool [B, L, L] with L = P + W.

    Args:
        prompt_mask: bool [B, P], left padded.
        response: int64 [B, W], which response each slot behind the prompt belongs to, from 1.
        filled: bool [B, W], false at slots without a token.
    """
    branch = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.int64), response], dim=1)
    valid = torch.cat([prompt_mask, filled], dim=1)
    total = valid.shape[1]
    visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    visible &= torch.ones(total, total, dtype=torch.bool, device=valid.device).tril()
    visible &= valid[:, None, :]
    # Padding attends to itself: a row with nothing to attend to would be NaN.
    visible |= torch.eye(total, dtype=torch.bool, device=valid.device)
    return visible


def for_model(mask: Tensor, positions: Tensor, model: nn.Module) -> Tensor | dict[str, Tensor]:
    """Return ``mask`` as the model's ``forward`` takes it: one, or one a kind of layer.

    Where layers see only a window of positions, the window is measured in the positions of a branch, which
    are those of the response standing alone.

    Args:
        mask: bool [B, L, L].
        positions: int64 [B, L], the position ids.
        model: the policy or a reference.
    """
    config = base_model(model).config.get_text_config()
    kinds = layer_kinds(config)
    if SLIDING not in kinds:
        return _as_attention_takes_it(mask, model)
    near = positions[:, :, None] - positions[:, None, :] < config.sliding_window
    windowed = _as_attention_takes_it(mask & near, model)
    if kinds == {SLIDING}:
        return windowed
    return {FULL: _as_attention_takes_it(mask, model), SLIDING: windowed}


def layer_kinds(config: Any) -> set[str]:
    """Return the kinds of attention that a model's layers have, in the words of transformers."""
    window = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])


def _as_attention_takes_it(mask: Tensor, model: nn.Module) -> Tensor:
    """SDPA takes a boolean mask [B, 1, L, L]; eager attention adds the mask to its scores."""
    mask = mask.unsqueeze(1)
    if base_model(model).config._attn_implementation == "sdpa":
        return mask
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return zero.where(mask, torch.finfo(dtype).min)

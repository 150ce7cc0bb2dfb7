"""Log-probs of responses by single forward passes, with which every other way of scoring is compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.scoring.inputs import base_model, label_log_probs, last_logits
from pl_prefopt.types import TokenTree

FLOOR = 1e-4
"""The difference that rounding always explains in float32."""
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError)
"""What a model may raise that can't be run in some way."""


def singly(model: nn.Module, tree: TokenTree) -> Tensor:
    """Return float32 [B, R, T] by one forward pass per response, given its token ids and nothing else.

    Raises:
        ConfigError: if the model can't be run so.
    """
    weight = next(weight for weight in model.parameters() if weight.is_floating_point())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    found = torch.zeros(tree.response_ids.shape, dtype=dtype, device=tree.response_ids.device)
    for row, sizes in enumerate(tree.response_sizes):
        for number, size in enumerate(sizes):
            if size:
                ids = row_of(tree, row, number).unsqueeze(0)
                found[row, number, :size] = last_log_probs(model, ids, size)
    return found


def together(model: nn.Module, tree: TokenTree) -> Tensor:
    """Return what ``singly`` does, by one forward pass of all rows, with other tokens behind shorter ones."""
    places = tree.response_mask.any(dim=2).nonzero().tolist()
    rows = [row_of(tree, row, number) for row, number in places]
    width, behind = max(map(len, rows)), tree.prompt_ids[0, :1]
    batch = torch.stack([torch.cat([row, behind.expand(width)])[:width] for row in rows])
    log_probs = last_log_probs(model, batch, width - 1)
    found = log_probs.new_zeros(tree.response_ids.shape)
    for scored, row, (b, r) in zip(log_probs, rows, places, strict=True):
        size = tree.response_sizes[b][r]
        found[b, r, :size] = scored[: len(row) - 1][-size:]
    return found


def row_of(tree: TokenTree, row: int, number: int) -> Tensor:
    """Return a prompt with one of its responses, unpadded."""
    response = tree.response_ids[row, number, : tree.response_sizes[row][number]]
    return torch.cat([tree.prompt_ids[row, : tree.prompt_lengths[row]], response])


def last_log_probs(model: nn.Module, ids: Tensor, count: int) -> Tensor:
    """Return the log-probs of the last ``count`` tokens of rows, float32 [N, count]."""
    try:
        logits = last_logits(model, count + 1, input_ids=ids)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        raise ConfigError(
            f"{class_name(model)} gives no log-probs for token ids alone ({error}): name a causal language "
            "model, one that AutoModelForCausalLM runs without other inputs."
        ) from error
    return label_log_probs(logits[:, :-1], ids[:, -count:])


def floor(model: nn.Module, device: torch.device) -> float:
    """Return the difference that rounding always explains, by the dtypes that the model computes in."""
    exact = (torch.float32, torch.float64)  # a base in four bits has integers, and computes in bfloat16
    rough = any(weight.dtype not in exact for weight in model.parameters())
    rough = rough or torch.is_autocast_enabled(device.type)
    if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        rough = True
    return 0.05 if rough else FLOOR


def class_name(model: nn.Module) -> str:
    """Return the name of the model's class, without its adapter's."""
    return type(base_model(model)).__name__

"""How a token tree is laid out in a model's input. Above this package nobody knows which layout ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.scoring.inputs import base_model, label_log_probs, last_logits, left_padded
from pl_prefopt.types import TokenTree


class Layout(ABC):
    """A way of computing the log-prob of each response token given its prompt."""

    @abstractmethod
    def token_log_probs(self, model: nn.Module, tree: TokenTree) -> Tensor:
        """Return float32 [B, R, T]; the values at padding mean nothing."""


class PlainLayout(Layout):
    """One input row a response: its prompt, then itself. Works with every causal model."""

    def token_log_probs(self, model: nn.Module, tree: TokenTree) -> Tensor:
        """Return float32 [B, R, T]; the values at padding mean nothing."""
        prompts, responses, length = tree.response_ids.shape
        prompt_ids, prompt_mask = left_padded(tree.prompt_ids, tree.prompt_mask)
        ids = _repeat_and_append(prompt_ids, tree.response_ids)
        mask = _repeat_and_append(prompt_mask, tree.response_mask)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
        logits = last_logits(model, length + 1, **inputs)[:, :-1]
        return label_log_probs(logits, ids[:, -length:]).view(prompts, responses, length)


class TreeLayout(Layout):
    """One input row a prompt, its tokens computed once: [prompt | response 1 | response 2 | ...].

    Each response's positions continue the prompt's, and it attends to the prompt and to itself. For
    models whose attention takes a [B, 1, L, L] mask and whose positions are given by ``position_ids``.
    """

    def token_log_probs(self, model: nn.Module, tree: TokenTree) -> Tensor:
        """Return float32 [B, R, T]; the values at padding mean nothing."""
        responses, length = tree.response_ids.shape[1:]
        prompt_ids, prompt_mask = left_padded(tree.prompt_ids, tree.prompt_mask)
        attended = tree_mask(prompt_mask, tree.response_mask).unsqueeze(1)
        logits = last_logits(
            model,
            responses * length + 1,
            input_ids=torch.cat([prompt_ids, tree.response_ids.flatten(1)], dim=1),
            attention_mask=_as_model_takes_it(attended, model),
            position_ids=_tree_positions(prompt_mask, responses, length),
        )
        # A response's first token is predicted at the prompt's end, the others each at the token before.
        first = label_log_probs(logits[:, :1].expand(-1, responses, -1), tree.response_ids[:, :, 0])
        rest = logits[:, 1:].view(len(logits), responses, length, -1)
        later = label_log_probs(rest[:, :, :-1], tree.response_ids[:, :, 1:])
        return torch.cat([first.unsqueeze(-1), later], dim=-1)


def tree_mask(prompt_mask: Tensor, response_mask: Tensor) -> Tensor:
    """Return which position may attend to which, bool [B, L, L] with L = P + R·T.

    Args:
        prompt_mask: bool [B, P], left padded.
        response_mask: bool [B, R, T].
    """
    width = prompt_mask.shape[1]
    responses, length = response_mask.shape[1:]
    device = prompt_mask.device
    valid = torch.cat([prompt_mask, response_mask.flatten(1)], dim=1)
    total = valid.shape[1]
    position = torch.arange(total, device=device)
    # Branch 0 is the prompt, branch r the r-th response.
    branch = torch.cat(
        [position.new_zeros(width), torch.arange(1, responses + 1, device=device).repeat_interleave(length)]
    )
    visible = (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
    visible = visible & (position[None, :] <= position[:, None])
    # Padding attends to itself: a row with nothing to attend to would be NaN.
    diagonal = torch.eye(total, dtype=torch.bool, device=device)
    return (visible & valid[:, None, :]) | diagonal


def _repeat_and_append(prompt: Tensor, response: Tensor) -> Tensor:
    repeated = prompt.unsqueeze(1).expand(-1, response.shape[1], -1)
    return torch.cat([repeated, response], dim=-1).flatten(0, 1)


def _tree_positions(prompt_mask: Tensor, responses: int, length: int) -> Tensor:
    prompt = (prompt_mask.cumsum(dim=1) - 1).clamp(min=0)
    response = prompt_mask.sum(dim=1, keepdim=True) + torch.arange(length, device=prompt_mask.device)
    return torch.cat([prompt, response.repeat(1, responses)], dim=1)


def _as_model_takes_it(mask: Tensor, model: nn.Module) -> Tensor:
    """SDPA takes a boolean mask; eager attention adds the mask to its scores."""
    if base_model(model).config._attn_implementation == "sdpa":
        return mask
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return zero.where(mask, torch.finfo(dtype).min)

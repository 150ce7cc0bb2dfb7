"""How a token tree is laid out in a model's input. Above this package nobody knows which layout ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.scoring.heads import Head
from pl_prefopt.scoring.inputs import left_padded
from pl_prefopt.scoring.masks import for_model, tree_mask
from pl_prefopt.types import TokenTree


class Layout(ABC):
    """A way of computing the log-prob of each response token given its prompt."""

    @abstractmethod
    def token_log_probs(self, model: nn.Module, tree: TokenTree, head: Head) -> Tensor:
        """Return float32 [B, R, T]; the values at padding mean nothing."""


class PlainLayout(Layout):
    """One input row a response: its prompt, then itself. Works with every causal model."""

    def token_log_probs(self, model: nn.Module, tree: TokenTree, head: Head) -> Tensor:
        """Return float32 [B, R, T]; the values at padding mean nothing."""
        prompts, responses, length = tree.response_ids.shape
        prompt_ids, prompt_mask = left_padded(tree.prompt_ids, tree.prompt_mask)
        ids = _repeat_and_append(prompt_ids, tree.response_ids)
        mask = _repeat_and_append(prompt_mask, tree.response_mask)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
        labels = ids[:, -length:]
        source = torch.arange(length, device=ids.device).expand_as(labels)
        log_probs = head.log_probs(model, labels, source, prompt_ids.shape[1] - 1, **inputs)
        return log_probs.view(prompts, responses, length)


class TreeLayout(Layout):
    """One input row a prompt, its tokens computed once: [prompt | response 1 | response 2 | ...].

    Responses stand side by side without padding between them. Each one's positions continue the prompt's,
    and it attends to the prompt and to itself. For models whose attention takes a [B, 1, L, L] mask and
    whose positions are given by ``position_ids``; layers with a sliding window get a mask of their own.
    """

    def token_log_probs(self, model: nn.Module, tree: TokenTree, head: Head) -> Tensor:
        """Return float32 [B, R, T]; the values at padding are 0."""
        prompt_ids, prompt_mask = left_padded(tree.prompt_ids, tree.prompt_mask)
        slots = Slots.of(tree)
        positions = _tree_positions(prompt_mask, slots)
        mask = tree_mask(prompt_mask, slots.response, slots.filled)
        labels = tree.response_ids.flatten(1).gather(1, slots.token)
        # A response's first token is predicted at the prompt's end, each other one at the slot before it.
        source = torch.where(slots.step == 0, 0, torch.arange(labels.shape[1], device=labels.device))
        log_probs = head.log_probs(
            model,
            labels,
            source,
            prompt_ids.shape[1] - 1,
            input_ids=torch.cat([prompt_ids, labels], dim=1),
            attention_mask=for_model(mask, positions, model),
            position_ids=positions,
        ).masked_fill(~slots.filled, 0.0)
        flat = log_probs.new_zeros(tree.response_ids.flatten(1).shape)
        return flat.scatter(1, slots.token, log_probs).view(tree.response_ids.shape)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Where a prompt's response tokens stand in its input row: W slots after the prompt.

    Attributes:
        token: int64 [B, W], each slot's place in the flattened [R·T] responses.
        response: int64 [B, W], which response it belongs to, from 1; the prompt is 0.
        step: int64 [B, W], its place in the response.
        filled: bool [B, W], false at the padding behind a prompt's last response.
    """

    token: Tensor
    response: Tensor
    step: Tensor
    filled: Tensor

    @classmethod
    def of(cls, tree: TokenTree) -> Slots:
        """Line up the response tokens of each prompt, in order and without gaps."""
        length = tree.response_ids.shape[2]
        padding = ~tree.response_mask.flatten(1)
        token = padding.to(torch.uint8).argsort(dim=1, stable=True)[:, : tree.longest]
        return cls(
            token=token,
            response=token // length + 1,
            step=token % length,
            filled=~padding.gather(1, token),
        )


def _repeat_and_append(prompt: Tensor, response: Tensor) -> Tensor:
    repeated = prompt.unsqueeze(1).expand(-1, response.shape[1], -1)
    return torch.cat([repeated, response], dim=-1).flatten(0, 1)


def _tree_positions(prompt_mask: Tensor, slots: Slots) -> Tensor:
    prompt = (prompt_mask.cumsum(dim=1) - 1).clamp(min=0)
    return torch.cat([prompt, prompt_mask.sum(dim=1, keepdim=True) + slots.step], dim=1)

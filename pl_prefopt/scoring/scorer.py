"""The one path by which the policy and every reference score responses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from pl_prefopt.errors import DataError
from pl_prefopt.scoring.inputs import accepts, base_model
from pl_prefopt.scoring.layouts import Layout, PlainLayout, TreeLayout
from pl_prefopt.types import ResponseLogProbs, TokenTree

LayoutName = Literal["auto", "tree", "plain"]


class Scorer:
    """Computes log-probs of responses with one model.

    Args:
        layout: ``tree`` computes each prompt once for all its responses; ``plain`` once a response;
            ``auto`` takes the tree where the model supports it and a probe confirms that both agree.
    """

    def __init__(self, layout: LayoutName = "auto") -> None:
        self.layout = layout
        self._shared: TreeLayout | None = TreeLayout() if layout == "tree" else None
        self._decided = layout != "auto"

    def __call__(self, model: nn.Module, tree: TokenTree) -> ResponseLogProbs:
        """Return the log-probs of each response of ``tree``, float32 [B, R], with gradient if enabled."""
        _check_length(model, tree)
        if not self._decided:
            self._decide(model, tree)
        log_probs = self._layout_for(model, tree).token_log_probs(model, tree)
        counted = tree.counted_mask
        return ResponseLogProbs(
            sum=log_probs.masked_fill(~counted, 0.0).sum(dim=-1),
            length=counted.sum(dim=-1),
        )

    def _layout_for(self, model: nn.Module, tree: TokenTree) -> Layout:
        window = attention_window(model)
        reach = tree.prompt_ids.shape[1] + tree.response_ids.shape[2]
        if self._shared is None or (window is not None and reach > window):
            return PlainLayout()
        return self._shared

    def _decide(self, model: nn.Module, tree: TokenTree) -> None:
        self._decided = True
        obstacle = _obstacle(model) or _disagreement(model, tree.prompt_ids.device)
        if obstacle is None:
            self._shared = TreeLayout()
        else:
            warnings.warn(f"Each prompt is computed once a response, because {obstacle}.", stacklevel=3)


def _check_length(model: nn.Module, tree: TokenTree) -> None:
    config = base_model(model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    prompt, response = tree.prompt_ids.shape[1], tree.response_ids.shape[2]
    if limit is not None and prompt + response > limit:
        raise DataError(
            f"{type(base_model(model)).__name__} takes at most {limit} tokens, but a batch has a prompt of "
            f"{prompt} and a response of {response} of its tokens: set data.max_prompt_length and "
            f"data.max_response_length so that they add up to less."
        )


def attention_window(model: nn.Module) -> int | None:
    """Return the model's sliding attention window in tokens, if it has one.

    Up to this reach a window changes nothing; beyond it the tree's own mask would override it.
    """
    config = base_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return int(window) if window else None


def _obstacle(model: nn.Module) -> str | None:
    name = type(base_model(model)).__name__
    attention = getattr(base_model(model).config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"attn_implementation '{attention}' takes no mask of its own (sdpa and eager do)"
    if not accepts(model, "position_ids"):
        return f"{name} takes no position_ids"
    return None


@torch.no_grad()
def _disagreement(model: nn.Module, device: torch.device) -> str | None:
    """Score a tiny tree in both layouts: a model that ignores the mask or the positions gives itself away."""
    tree = _probe(device)
    with evaluating(model):
        try:
            shared = TreeLayout().token_log_probs(model, tree)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            return f"{type(base_model(model)).__name__} refuses a tree-shaped mask ({error})"
        plain = PlainLayout().token_log_probs(model, tree)
    gap = (shared - plain)[tree.response_mask].abs().max().item()
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    if gap <= (1e-3 if exact else 0.25):
        return None
    return f"{type(base_model(model)).__name__} gives other numbers with a tree-shaped mask (by {gap:.2g})"


def _probe(device: torch.device) -> TokenTree:
    prompt_mask = torch.tensor([[True, True, True], [True, False, False]], device=device)
    response_mask = torch.tensor(
        [[[True, True, True], [True, False, False]], [[True, True, False], [True, True, True]]], device=device
    )
    ids = torch.arange(18, device=device) % 17 + 1
    return TokenTree(
        prompt_ids=ids[:6].view(2, 3),
        prompt_mask=prompt_mask,
        response_ids=ids[6:].view(2, 2, 3),
        response_mask=response_mask,
        counted_mask=response_mask,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode (no dropout) and back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

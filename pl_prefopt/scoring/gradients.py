"""Gradients of a few log-probs, by which a probe compares kernels and compiled code with the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.scoring.heads import Head
from pl_prefopt.scoring.inputs import base_model
from pl_prefopt.scoring.layouts import Layout
from pl_prefopt.scoring.single_rows import FLOOR, floor, singly, together
from pl_prefopt.types import TokenTree

_SLOPE, _ROUGH_SLOPE, _LARGEST_SLOPE = 1e-3, 0.1, 0.5
"""Tolerances, as shares of a gradient's norm: in float32, in less, and at most."""
_LARGEST = 2**20
"""Weights with more elements are left out; vectors, and the matrices of adapters, have fewer."""


def is_trained(model: nn.Module) -> bool:
    """Tell whether a pass now is one of training, whose gradients can be compared beforehand.

    Those of sharded weights can't: their backward pass is one of the whole model, with communication.
    """
    if not torch.is_grad_enabled() or isinstance(model, FSDPModule):
        return False
    return any(weight.requires_grad for weight in model.parameters())


def gradients_of(model: nn.Module, tree: TokenTree, score: Callable[[], Tensor]) -> list[Tensor]:
    """Return the gradients of a sum of weighted log-probs, float32; ``.grad`` of no weight is changed.

    Args:
        model: a model of which some weights are trained.
        tree: the prompts and responses.
        score: returns their log-probs [B, R, T], by one way of scoring.

    Returns:
        That of the embeddings, [D] for each distinct token, and those of the small trained weights, as
        vectors of all of them together where there are any.
    """
    small = [w for w in model.parameters() if w.requires_grad and w.numel() <= _LARGEST]
    with torch.enable_grad(), _moved_embeddings(model, tree) as moves:
        log_probs = score()
        # Different weights of either sign, so that what is added up by mistake doesn't cancel out.
        weight = torch.arange(log_probs.numel(), device=log_probs.device).cos().view(log_probs.shape)
        total = (weight * log_probs).sum()
        found = torch.autograd.grad(total, [moves, *small], allow_unused=True, materialize_grads=True)
    of_embeddings, *others = (gradient.float().flatten() for gradient in found)
    return [of_embeddings, *([torch.cat(others)] if others else [])]


def relative_gap(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference between gradients, as a share of the norm of the expected one."""
    pairs = zip(found, expected, strict=True)
    shares = [(mine - theirs).norm() / theirs.norm().clamp(min=1e-30) for mine, theirs in pairs]
    return float(torch.stack(shares).max())


@contextmanager
def _moved_embeddings(model: nn.Module, tree: TokenTree) -> Iterator[Tensor]:
    """Yield zeros [V, D], which are added to the embeddings of V distinct tokens within the context."""
    table = base_model(model).get_input_embeddings()
    ids = torch.unique(torch.cat([tree.prompt_ids.flatten(), tree.response_ids.flatten()]))
    moves = torch.zeros(len(ids), table.weight.shape[1], device=ids.device, requires_grad=True)

    def moved(module: nn.Module, given: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        return embedded + F.embedding(torch.searchsorted(ids, given[0]), moves).to(embedded.dtype)

    handle = table.register_forward_hook(moved)
    try:
        yield moves
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """The gradients of a few log-probs by single forward passes.

    Attributes:
        model: the model, in evaluation mode.
        tree: the prompts and responses, longer than windows that can be shortened.
        expected: the gradients, see ``gradients_of``.
        tolerance: the share of their norm that rounding explains.
    """

    model: nn.Module
    tree: TokenTree
    expected: list[Tensor]
    tolerance: float

    @classmethod
    def of(cls, model: nn.Module, tree: TokenTree) -> Slopes:
        """Compute the gradients, and measure how this model rounds them."""
        expected = gradients_of(model, tree, lambda: singly(model, tree))
        noise = relative_gap(gradients_of(model, tree, lambda: together(model, tree)), expected)
        rough = floor(model, tree.prompt_ids.device) > FLOOR
        tolerance = max(_ROUGH_SLOPE if rough else _SLOPE, min(4 * noise, _LARGEST_SLOPE))
        return cls(model=model, tree=tree, expected=expected, tolerance=tolerance)

    def gap(self, layout: Layout, head: Head) -> float:
        """Return by how much the gradients by another way of scoring differ, as a share of their norm."""
        score = partial(layout.token_log_probs, self.model, self.tree, head)
        return relative_gap(gradients_of(self.model, self.tree, score), self.expected)

"""Gradients of a few log-probs, by which a probe compares kernels and compiled code with the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.errors import ConfigError
from pl_prefopt.scoring.heads import Head
from pl_prefopt.scoring.inputs import base_model
from pl_prefopt.scoring.layouts import Layout
from pl_prefopt.scoring.routers import has_routers
from pl_prefopt.scoring.single_rows import FAILURES, FLOOR, floor, singly, together
from pl_prefopt.types import TokenTree

_SLOPE, _ROUGH_SLOPE, _LARGEST_SLOPE = 1e-3, 0.1, 0.5
"""Tolerances, as shares of a gradient's norm: in float32, in less, and at most."""
_LARGEST, _MOST = 2**20, 2**24
"""The elements of a weight, and of all, whose gradients are compared; vectors and adapters have fewer."""


def is_trained(model: nn.Module) -> bool:
    """Tell whether a model has trained weights, and gradients that can be compared.

    Those of sharded weights can't: their backward pass is one of the whole model, with communication.
    """
    return not isinstance(model, FSDPModule) and any(weight.requires_grad for weight in model.parameters())


def gradients_of(model: nn.Module, tree: TokenTree, score: Callable[[], Tensor]) -> list[Tensor]:
    """Return the gradients of a sum of weighted log-probs, float32; ``.grad`` of no weight is changed.

    Args:
        model: a model of which some weights are trained.
        tree: the prompts and responses.
        score: returns their log-probs [B, R, T], by one way of scoring.

    Returns:
        Vectors: that of the embeddings of the distinct tokens; that of small trained weights, of each n-th
        where they are too many; and each n-th element of that of a trained head.

    Raises:
        ValueError: if the model has no table of embeddings that is called with token ids.
    """
    small, head = _compared_weights(model)
    with torch.enable_grad(), _moved_embeddings(model, tree) as moves:
        log_probs = score()
        # Different weights of either sign, so that what is added up by mistake doesn't cancel out.
        weight = torch.arange(log_probs.numel(), device=log_probs.device).cos().view(log_probs.shape)
        total = (weight * log_probs).sum()
        inputs = [moves, *small, *head]
        found = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    of_embeddings, *others = (gradient.flatten() for gradient in found)
    of_small, of_head = others[: len(small)], others[len(small) :]
    # Cloned, since a view would keep the whole gradient.
    sampled = [gradient[:: -(-len(gradient) // _LARGEST)].clone() for gradient in of_head]
    return [part.float() for part in (of_embeddings, *([torch.cat(of_small)] if small else []), *sampled)]


def _compared_weights(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return trained weights that are small, and a trained head that isn't."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    small = [weight for weight in trained if weight.numel() <= _LARGEST]
    step = -(-sum(weight.numel() for weight in small) // _MOST) or 1
    layer = base_model(model).get_output_embeddings()
    head = [w for w in (layer.parameters() if layer is not None else ()) if w.requires_grad]
    return small[::step], [weight for weight in head if weight.numel() > _LARGEST]


def relative_gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
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
    calls = 0

    def moved(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], out: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        (asked,) = (*given, *named.values())
        place = torch.searchsorted(ids, asked).clamp(max=len(ids) - 1)
        known = (ids[place] == asked).unsqueeze(-1)  # other tokens stand where nothing is read
        added: Tensor = (F.embedding(place, moves) * known).to(out.dtype)
        return out + added

    handle = table.register_forward_hook(moved, with_kwargs=True)
    try:
        yield moves
    finally:
        handle.remove()
    if not calls:
        raise ValueError(f"{type(table).__name__} isn't called with token ids")


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """The gradients of a few log-probs by single forward passes.

    Attributes:
        model: the model, in evaluation mode.
        tree: the prompts and responses, longer than windows that can be shortened.
        expected: the gradients, see ``gradients_of``.
        tolerance: the share of their norm that rounding explains.
        problem: why there is nothing to compare with; empty where there is.
    """

    model: nn.Module
    tree: TokenTree
    expected: Sequence[Tensor] = ()
    tolerance: float = 0.0
    problem: str = ""

    @classmethod
    def of(cls, model: nn.Module, tree: TokenTree) -> Slopes:
        """Compute the gradients, and measure how this model rounds them."""
        try:
            expected = gradients_of(model, tree, lambda: singly(model, tree))
            again = gradients_of(model, tree, lambda: together(model, tree))
        except torch.OutOfMemoryError:
            raise
        except (*FAILURES, ConfigError) as error:
            return cls(model=model, tree=tree, problem=str(error))
        if not all(gradient.isfinite().all() for gradient in (*expected, *again)):
            return cls(model=model, tree=tree, problem="the model's own aren't finite")
        rough = floor(model, tree.prompt_ids.device) > FLOOR
        least = _LARGEST_SLOPE if has_routers(model) else _ROUGH_SLOPE if rough else _SLOPE
        tolerance = max(least, min(4 * relative_gap(again, expected), _LARGEST_SLOPE))
        return cls(model=model, tree=tree, expected=expected, tolerance=tolerance)

    def gap(self, layout: Layout, head: Head) -> float:
        """Return by how much the gradients by another way of scoring differ, as a share of their norm."""
        score = partial(layout.token_log_probs, self.model, self.tree, head)
        return relative_gap(gradients_of(self.model, self.tree, score), self.expected)

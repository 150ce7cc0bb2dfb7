"""Tree-shaped attention masks, in the form that a model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import create_block_mask

from pl_prefopt.compiling import for_any_length
from pl_prefopt.scoring.inputs import base_model, computed_in

FULL, SLIDING = "full_attention", "sliding_attention"
Visibility = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
MaskKind = Literal["full", "sliding", "both"]
"""Which masks a model is given, see ``for_model``."""


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The tree that the tokens of each input row form.

    Attributes:
        own: int64 [N, L], the branch of each token: 0 is the prefix shared by all prompts, -1 padding.
        trunk: int64 [N, L], the branch of its prompt.
        position: int64 [N, L], the position ids.
        read: the number of leading columns that hold cached keys and values only, without queries.
    """

    own: Tensor
    trunk: Tensor
    position: Tensor
    read: int = 0

    def visibility(self, window: int | None = None) -> Visibility:
        """Return the function (row, head, query, key) that tells whether a query may attend to a key.

        A window is measured in positions, which are those of the response in a row of its own. Padding
        attends to padding: a token with nothing to attend to would be NaN.

        The function reads tensors alone, so that compiled code of it takes any lengths and any window.
        """
        own, position = self.own, self.position
        rows = len(own)
        on, trunk, at = (
            part[:, self.read :].flatten().view(rows, -1) for part in (own, self.trunk, position)
        )
        column = torch.arange(self.read, own.shape[1], device=own.device)
        first = torch.zeros_like(at) if window is None else (at - window + 1).where(on >= 0, 0)

        def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen, of = own[row, key], on[row, query]
            same = (seen == 0) | (seen == trunk[row, query]) | (seen == of)
            return same & (key <= column[query]) & (position[row, key] >= first[row, query])

        return visible


def for_model(branches: Branches, model: nn.Module, kind: MaskKind, attention: str) -> Any:
    """Return the mask as the model's ``forward`` takes it: one, or a dictionary with one per kind of layer.

    Args:
        branches: of N rows.
        model: the policy or a reference.
        kind: whether layers attend to everything, to a sliding window, or some layers to either.
        attention: what computes the attention, one of ``FORMS``.
    """
    base, form = base_model(model), FORMS[attention]
    if kind == "full":
        return form(branches, model, None)
    windowed = form(branches, model, base.config.get_text_config().sliding_window)
    if kind == "sliding":
        return windowed
    return {FULL: form(branches, model, None), SLIDING: windowed}


def mask_kinds(config: Any) -> tuple[MaskKind, ...]:
    """Return the masks that a model may take, first those that its configuration declares.

    A configuration may carry a ``sliding_window`` that the model doesn't apply.
    """
    kinds = layer_kinds(config)
    if not getattr(config, "sliding_window", None):
        return ("full",)
    declared: MaskKind = "both" if len(kinds) > 1 else "sliding" if SLIDING in kinds else "full"
    others: tuple[MaskKind, ...] = ("full", "sliding", "both")
    return declared, *(kind for kind in others if kind != declared)


def layer_kinds(config: Any) -> set[str]:
    """Return the kinds of attention that a model's layers have, following transformers' naming."""
    window = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])


def dense(branches: Branches, window: int | None) -> Tensor:
    """Return the mask as bool [N, 1, L - read, L]."""
    rows, width = branches.own.shape
    row, key = (torch.arange(count, device=branches.own.device) for count in (rows, width))
    query = key[: width - branches.read].view(-1, 1)
    return branches.visibility(window)(row.view(-1, 1, 1, 1), row[0], query, key)


def _for_sdpa(branches: Branches, model: nn.Module, window: int | None) -> Tensor:
    """Return an additive mask: SDPA would convert a boolean one in every layer, and keep each copy."""
    mask, weight = dense(branches, window), next(model.parameters())
    # Sharded weights are stored in another dtype than they compute in, so the mask's dtype is unknown here.
    return mask if isinstance(weight, DTensor) else _added(mask, model)


def _for_eager(branches: Branches, model: nn.Module, window: int | None) -> Tensor:
    return _added(dense(branches, window), model)


def _added(mask: Tensor, model: nn.Module) -> Tensor:
    """Return what is added to the attention scores, in the dtype that the model computes in."""
    dtype = computed_in(model, mask.device)
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return zero.where(mask, torch.finfo(dtype).min)


def _for_flex_attention(branches: Branches, model: nn.Module, window: int | None) -> Any:
    """Return a block mask: blocks where nothing attends are skipped; no mask [L, L] is built on a GPU."""
    rows, width = branches.own.shape
    device = branches.own.device
    create = _compiled_block_mask() if device.type == "cuda" else create_block_mask
    with torch.no_grad():  # one compilation for passes with gradient and without
        return create(branches.visibility(window), rows, None, width - branches.read, width, device=device)


@cache
def _compiled_block_mask() -> Callable[..., Any]:
    """Compile the function that makes block masks when it is first needed."""
    compiled: Callable[..., Any] = torch.compile(create_block_mask, **for_any_length())
    return compiled


FORMS: dict[str, Callable[[Branches, nn.Module, int | None], Any]] = {
    "sdpa": _for_sdpa,
    "eager": _for_eager,
    "flex_attention": _for_flex_attention,
}
"""The attention implementations that take a custom mask, by their name in transformers."""

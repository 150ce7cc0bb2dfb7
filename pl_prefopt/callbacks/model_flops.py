"""The floating-point operations that a training step needs, and what a GPU could do in the same time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pl_prefopt.scoring import base_model
from pl_prefopt.scoring.routers import has_routers
from pl_prefopt.types import TokenTree

_PEAKS = {
    r"NVIDIA A100[\w -]*": 312,
    r"NVIDIA H100 80GB HBM3": 989,
    r"NVIDIA H100 PCIe": 756,
    r"NVIDIA H100 NVL": 835,
    r"NVIDIA H200": 989,
    r"NVIDIA H200 NVL": 835,
    r"NVIDIA B200": 2250,
    r"NVIDIA L4": 121,
    r"NVIDIA L40": 181,
    r"NVIDIA L40S": 362,
    r"NVIDIA A10": 125,
    r"NVIDIA A30": 165,
    r"NVIDIA A40": 150,
    r"NVIDIA RTX A6000": 155,
    r"NVIDIA RTX 6000 Ada Generation": 364,
    r"NVIDIA GeForce RTX 3090": 71,
    r"NVIDIA GeForce RTX 4090": 165,
    r"NVIDIA GeForce RTX 5090": 210,
}
"""TFLOP/s of dense bfloat16 matrix products with float32 sums, by the name that CUDA gives the card."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return a device's peak in FLOP/s for a trainer's precision; ``None`` where it isn't known."""
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(card: str) -> float | None:
    """Return a card's peak in FLOP/s for bfloat16 and float16; ``None`` for a card that isn't known.

    >>> peak_of("NVIDIA A100-SXM4-80GB"), peak_of("NVIDIA A100-SXM4-80GB MIG 3g.40gb")
    (312000000000000.0, None)
    """
    return next((1e12 * peak for name, peak in _PEAKS.items() if re.fullmatch(name, card)), None)


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """The sizes of a model that its floating-point operations follow from.

    Attributes:
        frozen: frozen parameters that take part in matrix products, without the head.
        trained: trained ones.
        head: parameters of the output embeddings.
        head_trained: whether they are trained.
        attention: query heads times head size, of each layer with softmax attention.
        windows: how far each of these layers sees; infinity without a sliding window.
    """

    frozen: int
    trained: int
    head: int
    head_trained: bool = False
    attention: int = 0
    windows: tuple[float, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> ModelFlops | None:
        """Read a model's sizes; ``None`` for mixtures of experts, in which a token meets some parameters."""
        base = base_model(model)
        config = base.config.get_text_config()
        if has_routers(model):
            return None
        head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
        apart = {id(weight) for part in (head, embeddings) for weight in part.parameters()}
        sizes = {True: 0, False: 0}
        for weight in model.parameters():
            if id(weight) not in apart:
                sizes[weight.requires_grad] += _size(weight)
        heads, hidden = (getattr(config, name, 0) for name in ("num_attention_heads", "hidden_size"))
        return cls(
            frozen=sizes[False],
            trained=sizes[True],
            head=_size(head.weight),
            head_trained=head.weight.requires_grad,
            attention=heads * (getattr(config, "head_dim", None) or hidden // max(heads, 1)),
            windows=_windows(config),
        )

    def forward(self, tree: TokenTree, *, logits: bool = True) -> float:
        """Return the operations of a forward pass over a tree's tokens, each counted once.

        Args:
            tree: prompts and responses, whose lengths are on the CPU.
            logits: whether the head is computed, which is at the response tokens only.
        """
        return self._pass(tree, frozen=1, trained=1, logits=logits)

    def training(self, tree: TokenTree, *, logits: bool = True) -> float:
        """Return the operations of a forward and a backward pass; see ``forward``."""
        return self._pass(tree, frozen=2, trained=3, logits=logits)

    def _pass(self, tree: TokenTree, *, frozen: int, trained: int, logits: bool) -> float:
        tokens, responses = unique_tokens(tree), sum(tree.response_lengths)
        products = tokens * (frozen * self.frozen + trained * self.trained)
        if logits:
            products += responses * self.head * (trained if self.head_trained else frozen)
        # Two products per pair of query and key. Their gradients take twice that, whatever is trained.
        pairs = sum(_pairs(tree, window) for window in self.windows)
        return 2.0 * products + 2.0 * (2 * self.attention * pairs) * (1 if trained == 1 else 3)


def unique_tokens(tree: TokenTree) -> int:
    """Return the number of tokens without padding, with what all prompts share counted once.

    Of a second view, tokens that it shares with the plain one don't count either.
    """
    shared = max(0, tree.shared_prefix) * (len(tree.prompt_lengths) - 1)
    if tree.shared_with_plain:
        shared = sum(tree.shared_with_plain)
    return sum(tree.prompt_lengths) + sum(tree.response_lengths) - shared


def _pairs(tree: TokenTree, window: float) -> float:
    """Return the pairs of a query and a key that it attends to."""
    known = tree.shared_with_plain or (0,) * len(tree.prompt_lengths)
    total = 0.0
    for prompt, start, sizes in zip(tree.prompt_lengths, known, tree.response_sizes, strict=True):
        own = _causal(prompt, window)
        total += own - _causal(start, window)
        total += sum(_causal(prompt + size, window) - own for size in sizes)
    return total


def _causal(length: int, window: float) -> float:
    """Return 1 + 2 + … + length, where no term is above ``window``.

    >>> _causal(4, math.inf), _causal(4, 2)
    (10.0, 7.0)
    """
    full = min(length, window)
    return full * (full + 1) / 2 + (length - full) * (window if length > window else 0)


def _windows(config: Any) -> tuple[float, ...]:
    window = getattr(config, "sliding_window", None) or math.inf
    layers = getattr(config, "num_hidden_layers", 0)
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    spans = {"full_attention": math.inf, "sliding_attention": float(window)}
    return tuple(spans[kind] for kind in kinds if kind in spans)


def _size(weight: Any) -> int:
    """Return a weight's number of elements, also of one in 4 bits."""
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else math.prod(state.shape))

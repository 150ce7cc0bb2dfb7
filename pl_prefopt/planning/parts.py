"""What a device's memory goes to, and how a tensor shows to which part it belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.planning.ledger import Classify
from pl_prefopt.planning.sharing import Sharing

WEIGHTS = "weights"
CASTS = "weights cast for computing"
GATHERED = "layers gathered from other devices"
GRADIENTS = "gradients"
BUCKETS = "gradients sent between devices"
OPTIMISER = "optimiser states"
REFERENCES = "reference models"
ACTIVATIONS = "activations"
MASKS = "attention masks and scores"
LOGITS = "logits"
PARTS = (WEIGHTS, CASTS, GATHERED, GRADIENTS, BUCKETS, OPTIMISER, REFERENCES, ACTIVATIONS, MASKS, LOGITS)


def by_shape(policy: Any) -> Classify:
    """Return what names the part of a tensor that a step makes, from its shape.

    A matrix that is shaped like a weight and of another type is a weight cast to the type of computation, or
    de-quantised for it; what ends in the vocabulary is logits; what ends in a square is attention's.

    Args:
        policy: the model before it has fake tensors.
    """
    stored = {
        tuple(weight.shape): None if hasattr(weight, "quant_type") else weight.dtype
        for weight in policy.parameters()
        if weight.dim() == 2
    }
    vocabulary = policy.get_input_embeddings().weight.shape[0]

    def classify(tensor: Tensor) -> str:
        shape = tuple(tensor.shape)
        if shape in stored and tensor.dtype != stored[shape]:
            return CASTS
        if len(shape) > 1 and shape[-1] == vocabulary:
            return LOGITS
        return MASKS if len(shape) == 4 and shape[-1] == shape[-2] else ACTIVATIONS

    return classify


def shares_of(sharing: Sharing) -> dict[str, float]:
    """Return the share of each part that one device holds."""
    if sharing.shards == 1:
        return {}
    # Sharded weights are gathered in the type of computation, and so never cast.
    return {CASTS: 0, **dict.fromkeys((WEIGHTS, GRADIENTS, OPTIMISER), 1 / sharing.shards)}


def gathered_bytes(policy: Any, compute: torch.dtype | None) -> int:
    """Return the bytes of whole weights and gradients that a device holds at a time of a sharded policy.

    These are the weights outside the layers, which stay; two layers, one of them gathered ahead; and one
    layer's gradients.

    Args:
        policy: the model before it has fake tensors.
        compute: the type of gathered weights; their own by default.
    """
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    kinds = set(base._no_split_modules or ())
    layers = [part for part in policy.modules() if type(part).__name__ in kinds]
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    outside = sum(_size(weight, compute) for weight in policy.parameters() if id(weight) not in inside)
    return outside + max((_layer(layer, compute) for layer in layers), default=0)


def _layer(layer: nn.Module, compute: torch.dtype | None) -> int:
    weights = list(layer.parameters())
    gradients = sum(_size(weight, compute) for weight in weights if weight.requires_grad)
    return 2 * sum(_size(weight, compute) for weight in weights) + gradients


def _size(weight: Tensor, compute: torch.dtype | None) -> int:
    return weight.numel() * (weight.dtype if compute is None else compute).itemsize

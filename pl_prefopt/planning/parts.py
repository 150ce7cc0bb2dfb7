"""What a device's memory goes to, and how a tensor shows to which part it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.planning.ledger import Classify
from pl_prefopt.planning.sharing import Sharing
from pl_prefopt.policies import layers_of

WEIGHTS = "weights"
CASTS = "weights cast for computing"
GATHERED = "layers gathered from other devices"
GRADIENTS = "gradients"
BUCKETS = "gradients sent between devices"
OPTIMISER = "optimiser states"
REFERENCES = "reference models"
SPLIT_REFERENCES = "reference models, divided"
ACTIVATIONS = "activations"
MASKS = "attention masks and scores"
LOGITS = "logits"
PARTS = (
    *(WEIGHTS, CASTS, GATHERED, GRADIENTS, BUCKETS, OPTIMISER),
    *(REFERENCES, SPLIT_REFERENCES, ACTIVATIONS, MASKS, LOGITS),
)


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
        return {GATHERED: 0}
    # Sharded weights are gathered in the type of computation, and so never cast.
    divided = (WEIGHTS, GRADIENTS, OPTIMISER, SPLIT_REFERENCES)
    return {CASTS: 0, **dict.fromkeys(divided, 1 / sharing.shards)}


def gathered_layers(model: Any, compute: torch.dtype | None) -> int:
    """Return the bytes of layers and gradients that a device holds whole at a time of a sharded model.

    These are two layers, one of them gathered ahead, and one layer's gradients.

    Args:
        model: with or without fake tensors.
        compute: the type of gathered weights; their own by default.
    """
    return max((_layer(layer, compute) for layer in layers_of(model)), default=0)


def gathered_once(model: Any, compute: torch.dtype | None) -> int:
    """Return the bytes of a sharded model's weights outside its layers, which stay whole once gathered.

    Their gradients stay whole to the backward pass's end and are counted, too.

    Args:
        model: with or without fake tensors.
        compute: the type of gathered weights; their own by default.
    """
    inside = {id(weight) for layer in layers_of(model) for weight in layer.parameters()}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    return sum(_size(weight, compute) for weight in outside) + _gradients(outside, compute)


def _layer(layer: nn.Module, compute: torch.dtype | None) -> int:
    weights = list(layer.parameters())
    return 2 * sum(_size(weight, compute) for weight in weights) + _gradients(weights, compute)


def _gradients(weights: Sequence[Tensor], compute: torch.dtype | None) -> int:
    return sum(_size(weight, compute) for weight in weights if weight.requires_grad)


def _size(weight: Tensor, compute: torch.dtype | None) -> int:
    return weight.numel() * (weight.dtype if compute is None else compute).itemsize

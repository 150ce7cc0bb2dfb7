"""The parts of a device's memory, and how tensors are assigned to them by shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.planning.memory_tracker import Classify
from pl_prefopt.planning.sharing import Sharing
from pl_prefopt.policies import layers_of

WEIGHTS = "weights"
CASTS = "weights cast for computing"
GATHERED = "layers gathered from other devices"
GRADIENTS = "gradients"
BUCKETS = "gradients sent between devices"
OPTIMISER = "optimiser states"
REFERENCES = "reference models"
SPLIT_REFERENCES = "reference models, sharded"
ACTIVATIONS = "activations"
MASKS = "attention masks and scores"
LOGITS = "logits"
PARTS = (
    *(WEIGHTS, CASTS, GATHERED, GRADIENTS, BUCKETS, OPTIMISER),
    *(REFERENCES, SPLIT_REFERENCES, ACTIVATIONS, MASKS, LOGITS),
)


def by_shape(policy: Any) -> Classify:
    """Return a function that assigns a tensor created by a step to a part, by its shape.

    A matrix with the shape of a weight and another dtype is a weight cast to the compute dtype, or
    de-quantised to it; a last dimension of vocabulary size means logits; two equal last dimensions mean an
    attention mask or attention scores.

    Args:
        policy: the model, before its tensors are replaced by fake ones.
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
    """Return the fraction of each part that one device holds."""
    if sharing.shards == 1:
        return {GATHERED: 0}
    # Sharded weights are gathered in the compute dtype, and so never cast.
    divided = (WEIGHTS, GRADIENTS, OPTIMISER, SPLIT_REFERENCES)
    return {CASTS: 0, **dict.fromkeys(divided, 1 / sharing.shards)}


def gathered_layers(model: Any, compute: torch.dtype | None) -> int:
    """Return the bytes of a sharded model's layers and gradients that a device holds unsharded at a time.

    These are two layers, one of them prefetched, and one layer's gradients.

    Args:
        model: with or without fake tensors.
        compute: the dtype of gathered weights; their own by default.
    """
    return max((_layer(layer, compute) for layer in layers_of(model)), default=0)


def gathered_once(model: Any, compute: torch.dtype | None) -> int:
    """Return the bytes of a sharded model's weights outside its layers, which remain gathered.

    Their gradients remain unsharded until the end of the backward pass and are included.

    Args:
        model: with or without fake tensors.
        compute: the dtype of gathered weights; their own by default.
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

"""Conversion of meta tensors to fake CPU tensors, for which torch chooses the kernels of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils

from pl_prefopt.types import PreferenceBatch, TokenTree

_Fake = Callable[[Tensor], Tensor]


def with_fake_weights(model: nn.Module) -> nn.Module:
    """Replace the meta tensors of ``model`` in place by fake ones, inside a ``FakeTensorMode``.

    Tied weights remain tied. 4-bit layers get their packed weight and its statistics, as bitsandbytes stores
    them.
    """
    made: dict[int, Tensor] = {}
    # Kept alive until the end, so that no two of them have the same id.
    outlines = [*model.parameters(), *model.buffers()]

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    module: Any
    for module in list(model.modules()):
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake(buffer)
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = _parameter(weight, fake, made)
    del outlines
    return model


@contextmanager
def untraced() -> Iterator[None]:
    """Make transformers build masks as for real tensors.

    It takes fake tensors for a trace, and then builds a mask where SDPA needs none.
    """
    before = masking_utils.is_tracing
    masking_utils.is_tracing = lambda tensor=None: False
    try:
        yield
    finally:
        masking_utils.is_tracing = before


def with_fake_values(batch: PreferenceBatch) -> PreferenceBatch:
    """Return a fake batch of the same shapes, inside a ``FakeTensorMode``."""

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    return batch.map(lambda part: part.map(fake) if isinstance(part, TokenTree) else fake(part))


def _parameter(weight: Any, fake: _Fake, made: dict[int, Tensor]) -> nn.Parameter:
    known = made.get(id(weight))
    if isinstance(known, nn.Parameter):
        return known
    four_bit = hasattr(weight, "quant_type")
    data = _packed(weight) if four_bit else fake(weight)
    parameter = nn.Parameter(data, requires_grad=weight.requires_grad)
    if four_bit:
        parameter.quant_state = _statistics(weight)  # type: ignore[attr-defined]
    made[id(weight)] = parameter
    return parameter


def _packed(weight: Any) -> Tensor:
    return torch.empty((weight.numel() + 1) // 2, 1, dtype=weight.quant_storage)


def _statistics(weight: Any) -> Any:
    """Return the scales of a weight's blocks, quantised in blocks of 256 with double quantisation."""
    from bitsandbytes.functional import QuantState

    blocks = -(-weight.numel() // weight.blocksize)
    shared = {
        "shape": weight.shape,
        "code": torch.empty(16),
        "blocksize": weight.blocksize,
        "quant_type": weight.quant_type,
        "dtype": weight.dtype,
    }
    if not weight.compress_statistics:
        return QuantState(absmax=torch.empty(blocks), **shared)
    scales = QuantState(
        absmax=torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
    )
    absmax = torch.empty(blocks, dtype=torch.uint8)
    return QuantState(absmax=absmax, offset=torch.empty(()), state2=scales, **shared)

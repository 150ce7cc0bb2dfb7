"""What stays in float32 where a model is converted to half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def full_precision_buffers(model: nn.Module) -> Iterator[None]:
    """Keep computed buffers, such as rotary frequencies, from being cast to half precision in the context.

    ``from_pretrained`` leaves buffers that aren't saved as the model computes them, but ``Module.to`` casts
    them with the weights, as Lightning's ``bf16-true`` does. A frequency rounded to bfloat16 is off by up to
    0.2 %, which at position 1000 is a turn of up to two radians.
    """
    held = [
        (part, name, buffer)
        for part in model.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name in part._non_persistent_buffers_set and buffer.is_floating_point()
    ]
    yield
    for part, name, before in held:
        after = part._buffers[name]
        if after is not None and after.dtype in HALF and before.dtype not in HALF:
            part._buffers[name] = before.to(after.device)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Create new tensors in float32 in the context, where Lightning's ``bf16-true`` sets another default.

    Half precision is for the model's weights and activations. A loss's constant or a counter in bfloat16 has
    eight bits.
    """
    default = torch.get_default_dtype()
    if default in HALF:
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)

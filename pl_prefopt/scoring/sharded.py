"""Support of FSDP2 for models that are not run by their ``forward``."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TypeVar

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

_METHOD = "prefopt_forward"
_Result = TypeVar("_Result")


def as_forward(model: nn.Module, compute: Callable[[], _Result]) -> _Result:
    """Return ``compute()``, which uses parts of ``model``, run as if it were the model's ``forward``.

    Weights outside the layers belong to the FSDP root, and are gathered from its ``forward`` to the end of
    the backward pass only. Gathering them once for the whole computation also keeps collectives in step:
    ranks may split their tokens into different numbers of chunks.
    """
    if not isinstance(model, FSDPModule):
        return compute()
    if not hasattr(model, _METHOD):
        setattr(model, _METHOD, MethodType(_call, model))
        register_fsdp_forward_method(model, _METHOD)
    result: _Result = getattr(model, _METHOD)(compute)
    return result


def _call(model: nn.Module, compute: Callable[[], _Result]) -> _Result:
    del model
    return compute()

"""What FSDP2 needs to know of a model that is not run by its ``forward``."""

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

    The weights that belong to no layer are the FSDP root's, whole only from its ``forward`` to the end of
    the backward pass. Gathering them once for all that is computed also keeps the processes in step: each
    may cut its tokens into as many pieces as it likes.
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

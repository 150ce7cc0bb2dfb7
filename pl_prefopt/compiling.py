"""Compilation for any number of rows and tokens."""

from __future__ import annotations

import inspect
from typing import Any

import torch

_MOST_COMPILATIONS = 64
"""Torch's limit of 8, beyond which code runs uncompiled, is too low: references, training and validation
differ in gradients, adapters and inference mode, layers in their kind, and all models share the code."""


def for_any_length() -> dict[str, Any]:
    """Return arguments of ``torch.compile``: sizes may change, and compiling anew is rare but allowed."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"dynamic": True, "recompile_limit": _MOST_COMPILATIONS}
    config: Any = torch._dynamo.config  # older versions have one limit for all
    config.recompile_limit = max(config.recompile_limit, _MOST_COMPILATIONS)
    return {"dynamic": True}

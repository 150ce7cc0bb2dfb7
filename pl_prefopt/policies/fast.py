"""The settings ``kernels`` and ``compile`` of a policy."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

from pl_prefopt.errors import ConfigError
from pl_prefopt.fast_layers import Kernels, compile_layers, liger, use_kernels
from pl_prefopt.policies.sharding import layers_of
from pl_prefopt.policies.spec import PolicySpec

_COMPILERS = {
    "cpu": (os.environ.get("CXX", "g++"),),
    "cuda": (os.environ["CC"],) if "CC" in os.environ else ("gcc", "clang"),
}
"""Those of which one must be there: torch's choice of a C++ compiler, and Triton's of a C compiler."""


def check_fast_layers(spec: PolicySpec, device: str) -> None:
    """Raise a ``ConfigError`` if kernels or compiled layers can't run; no model is loaded yet.

    Args:
        spec: the policy or a reference.
        device: the kind of device that it runs on, such as ``cuda``.
    """
    if spec.compile is not None:
        _check_compiler(f"policy.compile '{spec.compile}'", device)
    if spec.kernels is None:
        return
    if device != "cuda":
        raise ConfigError(
            f"policy.kernels '{spec.kernels}' needs a CUDA GPU, but the trainer runs on '{device}': set "
            "policy.kernels: null."
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(
            "policy.kernels is 'liger', but the package liger-kernel is not installed: "
            "pip install 'pl-prefopt[liger]', or set policy.kernels: null."
        )
    _check_compiler(f"policy.kernels '{spec.kernels}'", device)


def _check_compiler(setting: str, device: str) -> None:
    names = _COMPILERS.get(device, ())
    if names and not any(map(shutil.which, names)):
        language = "C++" if device == "cpu" else "C"
        raise ConfigError(
            f"{setting} needs a {language} compiler, and there is no {' or '.join(names)} on the PATH: "
            f"install one, or set {setting.split()[0]}: null."
        )


def with_fast_layers(model: Any, spec: PolicySpec, kernels: Callable[[], Kernels] | None = None) -> Any:
    """Give a model the kernels and compiled layers of its description; its weights' names don't change.

    Args:
        model: a policy or a reference, with or without an adapter, not sharded yet.
        spec: its description.
        kernels: makes the kernels; Liger's by default.

    Raises:
        ConfigError: if the kernels don't fit the model, or its class doesn't name its layers.
    """
    if spec.kernels is not None:
        use_kernels(model, (kernels or liger)())
    if spec.compile is not None:
        layers = layers_of(model)
        if not layers:
            raise ConfigError(
                f"policy.compile is 'layers', but '{spec.name}' doesn't name its layers (_no_split_modules): "
                "set policy.compile: null."
            )
        compile_layers(layers)
    return model

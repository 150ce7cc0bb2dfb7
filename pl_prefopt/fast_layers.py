"""Fused kernels and compilation for the layers of a model, by replacing methods of its modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pl_prefopt.compiling import for_any_length
from pl_prefopt.errors import ConfigError

_ROTARY = "apply_rotary_pos_emb"
_COMPILED = "_compiled_call_impl"


@dataclass(frozen=True)
class Kernels:
    """Fused functions.

    Attributes:
        norm: x, weight and ε to the RMS norm.
        gated: gate and up to silu(gate) · up.
        rotary: queries, keys, cosines and sines to queries and keys; ``None`` to leave it as it is.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor]
    gated: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[..., tuple[Tensor, Tensor]] | None


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Replace the forward methods of norms, gated MLPs and attention of this model, and of no other.

    Linear layers are called as before, with the adapters on them.

    Raises:
        ConfigError: if the model has none of one of these.
    """
    parts = list(model.modules())
    norms, gated = [part for part in parts if _is_norm(part)], [part for part in parts if _is_gated(part)]
    rotated = [part for part in parts if _is_rotated(part)] if _rotates_all(model) else []
    for found, what in ((norms, "RMS norm"), (gated, "gated MLP with SiLU"), (rotated, "rotary embedding")):
        if not found:
            raise ConfigError(
                f"policy.kernels 'liger' doesn't fit {_class_name(model)}, which has no {what} like Llama's: "
                "set policy.kernels: null; policy.compile: layers fuses the same operations."
            )
    for norm in norms:
        _replace(norm, _norm_forward(kernels))
    for mlp in gated:
        _replace(mlp, _gated_forward(kernels))
    for attention in rotated if kernels.rotary is not None else ():
        _replace(attention, _with_rotary(type(attention).forward, kernels))


def compile_layers(layers: Iterable[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each decoder layer by itself, for any batch size and length; one compilation serves all layers.

    Passes with a cache of keys and values, which depend on the number of the layer, aren't compiled.
    """
    for layer in layers:
        layer.compile(backend=backend, **for_any_length())
        setattr(layer, _COMPILED, _unless_cached(layer, getattr(layer, _COMPILED)))


class FastLayers:
    """The kernels and compiled layers of a model, which can be taken off for a while.

    Attributes:
        methods: modules with the name of a method and what replaces it; empty where there is nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.methods = [
            (part, name, part.__dict__[name])
            for part in model.modules()
            for name in ("forward", _COMPILED)
            if getattr(part.__dict__.get(name), "is_fast", False)
        ]

    @contextmanager
    def off(self) -> Iterator[Self]:
        """Run the model as transformers does within the context."""
        for part, name, _ in self.methods:
            del part.__dict__[name]
        try:
            yield self
        finally:
            self._put()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the model with them within the context, which is inside one of ``off``."""
        self._put()
        try:
            yield
        finally:
            for part, name, _ in self.methods:
                del part.__dict__[name]

    def _put(self) -> None:
        for part, name, fast in self.methods:
            part.__dict__[name] = fast


def _unless_cached(layer: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    uncompiled: Callable[..., Any] = layer._call_impl

    def call(*arguments: Any, **named: Any) -> Any:
        return (compiled if named.get("past_key_values") is None else uncompiled)(*arguments, **named)

    call.is_fast = True  # type: ignore[attr-defined]
    return call


def _replace(part: nn.Module, forward: Callable[..., Any]) -> None:
    forward.is_fast = True  # type: ignore[attr-defined]
    part.__dict__["forward"] = MethodType(forward, part)


def _norm_forward(kernels: Kernels) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return kernels.norm(hidden_states, self.weight, self.variance_epsilon)

    return forward


def _gated_forward(kernels: Kernels) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(kernels.gated(self.gate_proj(x), self.up_proj(x)))
        return projected

    return forward


def _with_rotary(forward: Any, kernels: Kernels) -> FunctionType:
    """Return a copy of an attention's forward function that finds another rotary embedding by its name."""
    named = {**forward.__globals__, _ROTARY: kernels.rotary}
    del named["__name__"]  # torch.compile would look the names up in the module, where they are others
    same = FunctionType(forward.__code__, named, forward.__name__, forward.__defaults__, forward.__closure__)
    same.__kwdefaults__ = forward.__kwdefaults__
    return same


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return Llama's RMS norm of the last dimension, computed in float32."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(x.dtype)


def _is_norm(part: nn.Module) -> bool:
    """Tell whether a module computes Llama's RMS norm, to the last bit, on a few numbers."""
    weight, epsilon = part._parameters.get("weight"), getattr(part, "variance_epsilon", None)
    if weight is None or weight.dim() != 1 or epsilon is None or len(part._parameters) != 1:
        return False
    small, numbers = copy.copy(part), _few_numbers(torch.bfloat16)
    few = nn.Parameter(numbers[0] + 1)
    small._parameters = {"weight": few}
    try:
        found = small(numbers)
    except (RuntimeError, TypeError, AttributeError):
        return False
    return torch.equal(found, rms_norm(numbers, few, epsilon))


def _is_gated(part: nn.Module) -> bool:
    """Tell whether a module computes down(silu(gate(x)) · up(x)), on a few numbers."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if set(names) - part._modules.keys():
        return False
    of_class = SimpleNamespace(
        gate_proj=lambda x: 2 * x,
        up_proj=lambda x: x + 1,
        down_proj=lambda x: 3 * x,
        act_fn=part.act_fn,
        config=getattr(part, "config", None),
    )
    numbers: Tensor = _few_numbers(torch.float32)
    try:
        found = type(part).forward(of_class, numbers)
    except (RuntimeError, TypeError, AttributeError):
        return False
    return torch.allclose(found, 3 * (F.silu(2 * numbers) * (numbers + 1)))


def _is_rotated(part: nn.Module) -> bool:
    """Tell whether a module applies Llama's rotary embedding, which a few numbers show."""
    forward = type(part).forward
    code, function = getattr(forward, "__code__", None), getattr(forward, "__globals__", {}).get(_ROTARY)
    if code is None or function is None or _ROTARY not in code.co_names:
        return False
    numbers = _few_numbers(torch.float32)
    query, key = numbers.view(1, 2, 2, -1), numbers.flip(0).view(1, 2, 2, -1)
    cosine, sine = torch.cat([numbers[:2, :2]] * 2, -1)[None], torch.cat([numbers[2:, :2]] * 2, -1)[None]
    try:
        found = function(query, key, cosine, sine)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False
    return all(
        torch.allclose(turned, each * cosine + torch.cat([-each[..., 2:], each[..., :2]], -1) * sine)
        for turned, each in zip(found, (query, key), strict=True)
    )


def _rotates_all(model: Any) -> bool:
    """Tell whether all dimensions of a head are rotated."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    rotary = getattr(config, "rope_parameters", None) or {}
    shares = (getattr(config, "partial_rotary_factor", None), rotary.get("partial_rotary_factor"))
    return all(share in (None, 1.0) for share in shares)


def _few_numbers(dtype: torch.dtype) -> Tensor:
    """Return numbers [4, ...] without structure, on the CPU."""
    with torch.device("cpu"):
        return torch.linspace(1, 40, 16).sin().view(4, -1).to(dtype)


def _class_name(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def liger() -> Kernels:
    """Return the kernels of liger-kernel, which imports Triton."""
    from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # In place, the backward pass would write into a gradient that may be the residual's as well.
        normed: Tensor = liger_rms_norm(x, weight, epsilon, in_place=False)
        return normed

    return Kernels(norm=norm, gated=liger_swiglu, rotary=liger_rotary_pos_emb)


class _SavingNorm(torch.autograd.Function):
    """The RMS norm with what a fused kernel keeps for the backward pass: its input and a number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (x * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed, wide = x * scale, gradient.float() * weight
        of_x = scale * (wide - normed * (wide * normed).mean(-1, keepdim=True))
        of_weight = (gradient * normed).flatten(0, -2).sum(0)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None


class _SavingGate(torch.autograd.Function):
    """silu(gate) · up, keeping gate and up for the backward pass and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        share = gate.sigmoid()
        return gradient * up * share * (1 + gate * (1 - share)), gradient * gate * share


def unfused() -> Kernels:
    """Return functions in plain torch that keep in memory what the fused kernels keep, for any device."""
    norm: Any = _SavingNorm.apply
    gated: Any = _SavingGate.apply
    return Kernels(norm=norm, gated=gated, rotary=None)

"""Sums and interpolations of policies: of what each adds to their common base, never of LoRA's A and B.

ΔW = s·BA is not linear in (A, B), so adding the matrices of two adapters by themselves gives another model.
Σ_i w_i s_i B_i A_i, however, is one product of stacked matrices, [w_1 s_1 B_1, w_2 s_2 B_2, …][A_1; A_2; …]:
an adapter whose rank is the sum of the ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies.adapters import read_settings, refuse_pickled_adapter

Method = Literal["sum", "slerp"]
_A, _B = ".lora_A.weight", ".lora_B.weight"
_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_FIXED = ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save", "layer_replication", "lora_bias")


class LoraDelta(NamedTuple):
    """What an adapter adds to one weight: ΔW = s·BA.

    Attributes:
        scale: s.
        a: [r, in].
        b: [out, r].
    """

    scale: float
    a: Tensor
    b: Tensor

    @property
    def whole(self) -> Tensor:
        """ΔW, [out, in]."""
        return self.scale * (self.b @ self.a)


def dot(first: LoraDelta, second: LoraDelta) -> float:
    """Return the inner product ⟨ΔW_1, ΔW_2⟩ of two matrices, without forming them.

    Examples:
        >>> one = LoraDelta(2.0, torch.ones(1, 3), torch.ones(2, 1))
        >>> dot(one, one), one.whole.square().sum().item()
        (24.0, 24.0)
    """
    inner = (first.b.T @ second.b) * (first.a @ second.a.T)
    return first.scale * second.scale * inner.sum().item()


def slerp_weights(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """Return the two weights of spherical linear interpolation.

    sin((1 − t)Ω)/sin Ω and sin(tΩ)/sin Ω, Ω the angle between the two; 1 − t and t where they are parallel
    or one is zero.

    Args:
        first: the squared norm of the first.
        second: that of the second.
        product: their inner product.
        t: from 0, the first, to 1, the second.

    Examples:
        >>> [round(one, 6) for one in slerp_weights(1.0, 1.0, 0.0, 0.5)]
        [0.707107, 0.707107]
        >>> slerp_weights(4.0, 1.0, 2.0, 0.25)
        (0.75, 0.25)
    """
    norms = math.sqrt(first * second)
    cosine = max(-1.0, min(1.0, product / norms)) if norms else 1.0
    angle = math.acos(cosine)
    if math.sin(angle) < 1e-6:
        return 1 - t, t
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def combine_deltas(members: Sequence[LoraDelta], weights: Sequence[float]) -> LoraDelta:
    """Return Σ_i w_i ΔW_i as one delta, of the sum of the ranks and scale 1.

    Examples:
        >>> one = LoraDelta(2.0, torch.ones(1, 3), torch.ones(2, 1))
        >>> combine_deltas([one, one], [0.75, 0.5]).whole[0]
        tensor([2.5000, 2.5000, 2.5000])
    """
    a = torch.cat([one.a.float() for one in members])
    b = torch.cat([w * one.scale * one.b.float() for one, w in zip(members, weights, strict=True)], dim=1)
    return LoraDelta(1.0, a, b)


def combine_adapters(folders: Sequence[Path], weights: Sequence[float], method: Method, out: Path) -> None:
    """Write the weighted sum or the interpolation of LoRA adapters as one adapter.

    Args:
        folders: adapters on the same base, saved by PEFT.
        weights: one per adapter. With ``slerp``, 1 − t and t of two adapters; each weight matrix has its own
            angle.
        method: ``sum`` or ``slerp``.
        out: the folder to write.

    Raises:
        ConfigError: if an adapter is no plain LoRA, or the bases differ.
    """
    settings = [_plain_lora(folder) for folder in folders]
    bases = {str(one["base_model_name_or_path"]) for one in settings}
    if len(bases) > 1:
        raise ConfigError(f"Expected adapters on the same base, got {' and '.join(sorted(bases))}.")
    deltas = [_deltas(folder, one) for folder, one in zip(folders, settings, strict=True)]
    ranks = [int(one["r"]) for one in settings]
    tensors: dict[str, Tensor] = {}
    for name in sorted({name for one in deltas for name in one}):
        members = _filled([one.get(name) for one in deltas], ranks)
        combined = combine_deltas(members, _weights(members, weights, method))
        tensors[name + _A], tensors[name + _B] = combined.a.contiguous(), combined.b.contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / _WEIGHTS, metadata={"format": "pt"})
    (out / _SETTINGS).write_text(json.dumps(_combined_settings(folders, sum(ranks)), indent=2) + "\n")


def combine_states(
    base: Mapping[str, Tensor],
    members: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    method: Method,
) -> dict[str, Tensor]:
    """Return the weights W_0 + Σ_i w_i (W_i − W_0) of whole models, computed in float32.

    Args:
        base: W_0 by name.
        members: W_i by name.
        weights: w_i; as in ``combine_adapters`` for ``slerp``.
        method: ``sum`` or ``slerp``.

    Raises:
        ConfigError: if a model has other weights than the base.
    """
    combined = {}
    for name, start in base.items():
        if any(name not in one or one[name].shape != start.shape for one in members):
            raise ConfigError(f"Expected models of the base's shapes, but '{name}' differs in one of them.")
        if not start.is_floating_point():
            combined[name] = start
            continue
        deltas = [one[name].float() - start.float() for one in members]
        own = weights
        if method == "slerp":
            first, second = deltas
            products = [(x * y).sum().item() for x, y in ((first, first), (second, second), (first, second))]
            own = slerp_weights(products[0], products[1], products[2], weights[1])
        total = sum((w * delta for w, delta in zip(own, deltas, strict=True)), start.float())
        combined[name] = total.to(start.dtype)
    return combined


def check_weights(count: int, weights: Sequence[float], method: Method) -> None:
    """Raise a ``ConfigError`` unless the weights fit the policies and the method."""
    if len(weights) != count:
        raise ConfigError(f"Expected one weight per policy, got {len(weights)} for {count}.")
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"Expected finite --weights, got {list(weights)}.")
    if method == "slerp" and (count != 2 or abs(sum(weights) - 1) > 1e-9 or min(weights) < 0):
        raise ConfigError("Expected two policies and --weights 1 − t and t, from 0 to 1, for --method slerp.")


def _plain_lora(folder: Path) -> dict[str, Any]:
    refuse_pickled_adapter(str(folder))
    settings = dict(read_settings(str(folder)))
    extra = next((name for name in _FIXED if settings.get(name)), None)
    if settings.get("peft_type") != "LORA" or settings.get("bias") != "none" or extra:
        what = extra or ("bias" if settings.get("peft_type") == "LORA" else "peft_type")
        raise ConfigError(
            f"{folder} is no plain LoRA adapter ({what} is {settings.get(what)!r}): export the policies with "
            "`prefopt export --merge true` and combine the models."
        )
    return settings


def _deltas(folder: Path, settings: Mapping[str, Any]) -> dict[str, LoraDelta]:
    tensors = load_file(folder / _WEIGHTS)
    rank = int(settings["r"])
    scale = float(settings["lora_alpha"]) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(_A):
            stem = name.removesuffix(_A)
            found[stem] = LoraDelta(scale, tensor, tensors[stem + _B])
        elif not name.endswith(_B):
            raise ConfigError(f"{folder} has the weight '{name}', which is no part of a plain LoRA adapter.")
    return found


def _filled(members: Sequence[LoraDelta | None], ranks: Sequence[int]) -> list[LoraDelta]:
    """Put zeros in place of the weights that an adapter leaves alone, so that all have the same rank."""
    known = next(one for one in members if one is not None)
    return [
        one
        if one is not None
        else LoraDelta(0.0, known.a.new_zeros(rank, known.a.shape[1]), known.b.new_zeros(len(known.b), rank))
        for one, rank in zip(members, ranks, strict=True)
    ]


def _weights(members: Sequence[LoraDelta], weights: Sequence[float], method: Method) -> Sequence[float]:
    if method == "sum":
        return weights
    first, second = (LoraDelta(one.scale, one.a.double(), one.b.double()) for one in members)
    return slerp_weights(dot(first, first), dot(second, second), dot(first, second), weights[1])


def _combined_settings(folders: Sequence[Path], rank: int) -> dict[str, Any]:
    """Return the settings of an adapter of this rank with scale 1 on the modules of all adapters."""
    held = [json.loads((folder / _SETTINGS).read_text(encoding="utf-8")) for folder in folders]
    modules: set[str] = set()
    for one in held:
        if not isinstance(one["target_modules"], list):
            raise ConfigError(f"Expected target_modules to be a list, got {one['target_modules']!r}.")
        modules |= set(one["target_modules"])
    start = {"init_lora_weights": True, "use_rslora": False, "target_modules": sorted(modules)}
    return {**held[0], **start, "r": rank, "lora_alpha": rank}

"""Attention of prefix trees without a mask, registered with transformers as ``tree_varlen``.

Each branch of a tree is one sequence of variable-length FlashAttention: its queries are the tokens that no
branch before it has, its keys and values those along the path from the root. With causal masking that is
aligned to the last query and the last key, a token attends to its own branch and to nothing else, so there is
no mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from pl_prefopt.compiling import for_any_length

AUTO, TREE_VARLEN, FLEX = "auto", "tree_varlen", "flex_attention"
_OURS = (AUTO, TREE_VARLEN, FLEX)
"""FlexAttention as well: what transformers calls so is compiled anew for every length."""
ARGUMENT = "tree_segments"
"""The argument of a model's ``forward`` that carries ``Segments`` to its attention."""
HALF = (torch.bfloat16, torch.float16)
"""What FlashAttention computes in."""
_LARGEST_HEAD = 256
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask")
_TAKES = frozenset(inspect.signature(varlen_attn).parameters)
"""torch 2.10 takes neither scale nor window_size, and 2.12 and later want to be told of grouped heads."""


class Wanted(NamedTuple):
    """The attention that a model is to have in training.

    Attributes:
        name: ``auto``, ``tree_varlen`` or ``flex_attention``.
        loaded: the one of transformers that it has where nothing better is found.
    """

    name: str
    loaded: str


def loaded_with(name: str, config: Any) -> str | None:
    """Return what transformers takes as ``attn_implementation``: its own default for our own names.

    Some versions have SDPA as the default of soft-capped models, and leave the soft-capping out.

    Args:
        name: the attention that a model is to have.
        config: the model's configuration.
    """
    if name not in _OURS:
        return name
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def want(model: Any, name: str) -> None:
    """Keep on a transformers model which of our own names it was loaded with."""
    if name in _OURS:
        model.wanted_attention = Wanted(name, model.config._attn_implementation)


def wanted(model: Any) -> Wanted:
    """Return what ``want`` kept; for any other model, the attention that it has."""
    own = str(getattr(model.config, "_attn_implementation", None))
    return getattr(model, "wanted_attention", Wanted(own, own))


@dataclass(kw_only=True, eq=False)  # if it were frozen, compiled layers would be guarded by all of its sizes
class Segments:
    """Which keys each part of a single row of tokens attends to.

    An argument of ``forward`` rather than a global, so that recomputation in the backward pass gets the same.

    Attributes:
        query_ends: int32 [S + 1], the cumulative numbers of queries of S segments, consecutive in the row.
        key_ends: int32 [S + 1], the cumulative numbers of keys. A segment's last query is at its last key.
        keys: int32, the places in the row of all segments' keys; ``None`` where they are the row itself.
        sizes: each segment's numbers of queries and keys, as known on the CPU.
        longest_query: the largest number of queries.
        longest_key: the largest number of keys.
        width: the number of keys in the row, including those from a prefix cache.
        read: the number of keys from a prefix cache, at the start of the row.
    """

    query_ends: Tensor
    key_ends: Tensor
    keys: Tensor | None
    sizes: tuple[tuple[int, int], ...]
    longest_query: int
    longest_key: int
    width: int
    read: int


def no_mask(device: torch.device) -> Tensor:
    """Return a mask without elements: models pass it on as it is instead of making one of their own."""
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers asks for it: by segments where there are any, else by FlexAttention or SDPA.

    Which of them it is depends on the arguments alone, so that a model can be run in each way, and generate,
    without a change of its settings, of which a recomputation in the backward pass wouldn't know.

    Args:
        module: the attention layer.
        query: [N, H, L, D].
        key: [N, G, K, D], with H a multiple of G.
        value: as ``key``.
        attention_mask: ``no_mask`` along with segments, a block mask for FlexAttention, or as SDPA takes it.
        options: ``tree_segments``, and what the model passes.

    Returns:
        [N, L, H, D], and nothing of interest.

    Raises:
        ValueError: if variable-length attention can't compute this.
    """
    segments: Segments | None = options.pop(ARGUMENT, None)
    if segments is not None:
        return _by_segments(query, key, value, segments, options), None
    if isinstance(attention_mask, Tensor) and attention_mask.numel() == 0:
        raise ValueError(f"{type(module).__name__} isn't given the model's argument {ARGUMENT}")
    if isinstance(attention_mask, BlockMask):
        return _by_blocks(query, key, value, attention_mask, options), None
    attended: tuple[Tensor, Tensor | None] = AttentionInterface()["sdpa"](
        module, query, key, value, attention_mask, **options
    )
    return attended


def _by_blocks(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, options: dict[str, Any]) -> Tensor:
    given = next((name for name in _UNSUPPORTED if options.get(name) is not None), None)
    if given is not None or options.get("dropout"):
        raise ValueError(f"FlexAttention on trees has no '{given or 'dropout'}'")
    flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    q, k, v = map(_autocast, (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    out: Tensor = flex(q, k, v, block_mask=mask, scale=options.get("scaling"), enable_gqa=grouped)
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Any]:
    """Compile FlexAttention when it is first needed; uncompiled, it would compute all scores."""
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, **for_any_length())
    return compiled


def _by_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, options: dict[str, Any]
) -> Tensor:
    q, k, v = (_autocast(part.squeeze(0).transpose(0, 1)) for part in (query, key, value))
    window, scale = options.get("sliding_window"), options.get("scaling")
    refused = refusal(q, v, options)
    if refused:
        raise ValueError(refused)
    if len(k) != segments.width or len(q) != segments.width - segments.read:
        raise ValueError(f"a row of {len(q)} queries and {len(k)} keys has segments for others")
    if segments.keys is not None:
        k, v = _gathered(k, segments.keys), _gathered(v, segments.keys)
    # The memory of fake tensors is that of the kernel.
    compute = _by_kernel if q.is_cuda or isinstance(q, FakeTensor) else _one_by_one
    return compute(q, k, v, segments, window, scale).unsqueeze(0)


def refusal(query: Tensor, value: Tensor, options: dict[str, Any]) -> str | None:
    """Return why variable-length attention can't compute this layer, ``None`` if it can.

    Args:
        query: [L, H, D].
        value: [K, G, D].
        options: what the model passes to its attention.
    """
    given = next((name for name in _UNSUPPORTED if options.get(name) is not None), None)
    if given is not None:
        return f"variable-length attention has no '{given}'"
    if options.get("dropout"):
        return "variable-length attention has no dropout"
    size = query.shape[-1]
    if value.shape[-1] != size or size % 8 or size > _LARGEST_HEAD:
        sizes = f"{size}" if value.shape[-1] == size else f"{size} for keys and {value.shape[-1]} for values"
        return f"variable-length attention takes head sizes of 8, 16, ... {_LARGEST_HEAD}, not {sizes}"
    if query.is_cuda and query.dtype not in HALF:
        return f"variable-length attention computes in torch.bfloat16 or torch.float16, not {query.dtype}"
    return _missing(options.get("sliding_window"), options.get("scaling"), size) if query.is_cuda else None


def _missing(
    window: int | None, scale: float | None, size: int, takes: frozenset[str] = _TAKES
) -> str | None:
    """Return what the installed torch's ``varlen_attn`` lacks for a layer."""
    wanted = {
        "window_size": window is not None,
        "scale": scale is not None and abs(scale * size**0.5 - 1) > 1e-6,
    }
    lacking = [name for name, needed in wanted.items() if needed and name not in takes]
    if lacking:
        return f"varlen_attn of torch {torch.__version__} has no {lacking[0]}; that of torch 2.11 has"
    return None


def _by_kernel(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float | None
) -> Tensor:
    sizes = (segments.query_ends, segments.key_ends, segments.longest_query, segments.longest_key)
    options = kernel_options(window, scale, grouped=q.shape[1] != k.shape[1])
    out = varlen_attn(q, k, v, *sizes, **options)
    assert isinstance(out, Tensor), "a pair where the log-sum-exp is asked for"
    return out


def kernel_options(
    window: int | None, scale: float | None, *, grouped: bool, takes: frozenset[str] = _TAKES
) -> dict[str, Any]:
    """Return what makes ``varlen_attn`` causal; its signature differs between torch versions.

    Args:
        window: the number of keys that a query attends to, itself included; ``None`` for all.
        scale: of the scores.
        grouped: whether there are fewer heads of keys than of queries.
        takes: the names of the function's parameters.
    """
    if "window_size" not in takes:  # torch 2.10
        return {"is_causal": True, **({"scale": scale} if "scale" in takes else {})}
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    return options | ({"enable_gqa": True} if grouped and "enable_gqa" in takes else {})


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float | None
) -> Tensor:
    """Compute what the kernel does by SDPA, one segment at a time, for devices that lack it."""
    queries, keys = map(list, zip(*segments.sizes, strict=True))
    parts = zip(torch.split(q, queries), torch.split(k, keys), torch.split(v, keys), strict=True)
    return torch.cat([_one(*part, window, scale) for part in parts])


def _one(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None) -> Tensor:
    place = torch.arange(len(k), device=k.device)
    ahead = place[len(k) - len(q) :].unsqueeze(1) - place
    seen = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.squeeze(0).transpose(0, 1)


def _autocast(part: Tensor) -> Tensor:
    """Cast as autocast does for SDPA: rotary embeddings may leave queries and keys in float32."""
    kind = part.device.type
    if part.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return part.to(torch.get_autocast_dtype(kind))
    return part


class _Gathered(torch.autograd.Function):
    """Rows of a tensor by their numbers; gradients of a row that is gathered several times add up in float32.

    The gradient of ``index_select`` would add them up in bfloat16, that of indexing would sort the numbers.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(source)
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        total = wide.new_zeros((ctx.rows, *wide.shape[1:])).index_add_(0, index, wide)
        return total.to(gradient.dtype), None


def _gathered(source: Tensor, index: Tensor) -> Tensor:
    rows: Tensor = _Gathered.apply(source, index)  # type: ignore[no-untyped-call]
    return rows


AttentionInterface.register(TREE_VARLEN, attend)
AttentionMaskInterface.register(TREE_VARLEN, AttentionMaskInterface()["sdpa"])

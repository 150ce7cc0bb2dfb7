"""KV cache of prompts, reused by later passes over prompts with the same beginning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pl_prefopt.scoring.inputs import accepts, base_model
from pl_prefopt.scoring.masks import FULL, layer_kinds

_KeysAndValues = tuple[Tensor, Tensor]


class PrefixCache:
    """Keys and values of every prompt token in every layer, detached, from one pass of one model.

    They need hardly any memory of their own, since the backward pass keeps the same tensors.

    Attributes:
        places: int64 [B, P], the place of each prompt token, as row · L + column; ``None`` before the pass.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self._layers: dict[int, _KeysAndValues] = {}

    def written_at(self, places: Tensor) -> Cache:
        """Return a transformers cache that records keys and values and leaves attention unchanged."""
        self.places = places
        return _Writer(self._layers)

    def read_at(self, source: Tensor) -> Cache:
        """Return a transformers cache that prepends the tokens at ``source``, int64 [N, E], to each row."""
        return _Reader(self._layers, source)


class _UpdateOnly(Cache):  # type: ignore[misc]
    """A cache of which a model calls ``update`` only: positions and masks are passed explicitly."""

    def __init__(self, layers: dict[int, _KeysAndValues]) -> None:
        super().__init__(layers=[])
        self._kept = layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks don't depend on it."""
        return 0


class _Writer(_UpdateOnly):
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> _KeysAndValues:
        self._kept[layer_idx] = key_states.detach(), value_states.detach()
        return key_states, value_states


class _Reader(_UpdateOnly):
    def __init__(self, layers: dict[int, _KeysAndValues], source: Tensor) -> None:
        super().__init__(layers)
        self._source = source

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> _KeysAndValues:
        keys, values = (_taken(kept, self._source) for kept in self._kept[layer_idx])
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def _taken(kept: Tensor, source: Tensor) -> Tensor:
    """Gather keys or values [N', heads, L, D] at places [N, E]; return [N, heads, E, D]."""
    by_place = kept.transpose(1, 2).flatten(0, 1)
    return by_place[source].transpose(1, 2)


def can_reuse(model: nn.Module) -> bool:
    """Tell whether later passes of ``model`` may reuse the keys and values of a first one.

    With dropout they would differ, and a checkpointed layer doesn't keep them.
    """
    base = base_model(model)
    if not accepts(base.base_model, "past_key_values"):
        return False
    return not (model.training and (base.is_gradient_checkpointing or _drops(model)))


def can_share_prompt(model: nn.Module) -> bool:
    """Tell whether ``generate`` may continue from keys and values of a prompt, copied to several rows.

    Windows and recurrent states keep no plain copy of a prompt, and a model has to be told positions, since
    prompts of several lengths are padded.
    """
    base = base_model(model)
    takes = all(accepts(base, name) for name in ("past_key_values", "position_ids", "logits_to_keep"))
    return takes and layer_kinds(base.config.get_text_config()) == {FULL}


def _drops(model: nn.Module) -> bool:
    config = base_model(model).config.get_text_config()
    functional = getattr(config, "attention_dropout", None)
    return bool(functional) or any(
        isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules()
    )

"""What one pass over prompts leaves for another over prompts that begin alike: keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pl_prefopt.scoring.inputs import accepts, base_model

_KeysAndValues = tuple[Tensor, Tensor]


class History:
    """Keys and values of every prompt token in every layer, without gradient, from one pass of one model.

    Kept as the model made them, they cost next to nothing: the backward pass keeps them too.

    Attributes:
        places: int64 [B, P], where each prompt token stood, as row · L + column; none before the pass.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self._layers: dict[int, _KeysAndValues] = {}

    def written_at(self, places: Tensor) -> Cache:
        """Return a cache that fills this history while the model runs; attention sees nothing of it."""
        self.places = places
        return _Writer(self._layers)

    def read_at(self, source: Tensor) -> Cache:
        """Return a cache that puts what stood at ``source``, int64 [N, E], before each row's own tokens."""
        return _Reader(self._layers, source)


class _Untold(Cache):  # type: ignore[misc]
    """A cache that a model only ever updates: positions and masks are given to it."""

    def __init__(self, layers: dict[int, _KeysAndValues]) -> None:
        super().__init__(layers=[])
        self._kept = layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: whatever a model would count from here is given to it."""
        return 0


class _Writer(_Untold):
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> _KeysAndValues:
        self._kept[layer_idx] = key_states.detach(), value_states.detach()
        return key_states, value_states


class _Reader(_Untold):
    def __init__(self, layers: dict[int, _KeysAndValues], source: Tensor) -> None:
        super().__init__(layers)
        self._source = source

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> _KeysAndValues:
        keys, values = (_taken(kept, self._source) for kept in self._kept[layer_idx])
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def _taken(kept: Tensor, source: Tensor) -> Tensor:
    """Take places [N, E] of keys or values [N', heads, L, D]; return [N, heads, E, D]."""
    by_place = kept.transpose(1, 2).flatten(0, 1)
    return by_place[source].transpose(1, 2)


def can_leave(model: nn.Module) -> bool:
    """Tell whether a pass of ``model`` leaves keys and values that another pass would compute again.

    With dropout they would differ; a checkpointed layer keeps none.
    """
    base = base_model(model)
    if not accepts(base.base_model, "past_key_values"):
        return False
    return not (model.training and (base.is_gradient_checkpointing or _drops(model)))


def _drops(model: nn.Module) -> bool:
    config = base_model(model).config.get_text_config()
    functional = getattr(config, "attention_dropout", None)
    return bool(functional) or any(
        isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules()
    )

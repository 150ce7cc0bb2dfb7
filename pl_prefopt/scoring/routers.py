"""The load-balancing loss of mixture-of-experts models, from the router logits of a scoring pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.scoring.inputs import base_model

_FUNCTION = "load_balancing_loss_func"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def has_routers(model: nn.Module) -> bool:
    """Tell whether a model is a mixture of experts, in which a token meets some of the parameters."""
    config = base_model(model).config.get_text_config()
    return any((getattr(config, name, 0) or 0) > 1 for name in _EXPERTS)


def check_has_routers(model: nn.Module) -> None:
    """Refuse a model without a load-balancing loss.

    Raises:
        ConfigError: if transformers defines none for it.
    """
    base = base_model(model)
    known = all(hasattr(base, name) for name in ("num_experts", "num_experts_per_tok"))
    if _function(base) is None or not known:
        raise ConfigError(
            "model.init_args.router_aux_loss_coef needs a mixture of experts with a load-balancing loss, but "
            f"transformers has none for {type(base).__name__}: remove the setting."
        )


@contextmanager
def recorded_routers(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the router logits of each layer, [N · L, experts], of a pass within the context."""
    found: list[Tensor] = []
    body = base_model(model).base_model

    def ask(_: nn.Module, arguments: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**settings, "output_router_logits": True}

    hooks = [
        body.register_forward_pre_hook(ask, with_kwargs=True),
        body.register_forward_hook(lambda _module, _arguments, output: found.extend(output.router_logits)),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def router_loss(model: nn.Module, logits: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Return the model's own load-balancing loss, with a count per token.

    It is a product of two means over tokens, in which transformers multiplies each token by its attention
    mask.

    Args:
        model: the model.
        logits: of the routers, one tensor per layer.
        counts: [N, L], how often each position counts; 0 for padding.
    """
    base = base_model(model)
    function = _function(base)
    assert function is not None
    flat = tuple(one.reshape(-1, one.shape[-1]) for one in logits)
    loss: Tensor = function(flat, base.num_experts, base.num_experts_per_tok, counts)
    return loss


def _function(base: nn.Module) -> Callable[..., Any] | None:
    return getattr(sys.modules[type(base).__module__], _FUNCTION, None)

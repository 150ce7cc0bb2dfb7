"""Merging an adapter into its base."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from pl_prefopt.errors import ConfigError, first_line


def merged(policy: Any) -> Any:
    """Return the base model with the policy's adapter merged into its weights.

    A weight that two modules share gets two adapters, or one of two modules an adapter, so each module has to
    have a weight of its own. Input and output embeddings are tied again where they end up equal; elsewhere
    the model's configuration says that they are not.

    Raises:
        ConfigError: if PEFT can't merge this adapter.
    """
    tied = policy.get_base_model().config.get_text_config().tie_word_embeddings
    _untie(policy.get_base_model())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # what this is about
            model = policy.merge_and_unload()
    except (RuntimeError, ValueError) as error:
        if "merg" not in str(error):
            raise
        raise ConfigError(
            f"This adapter can't be merged ({first_line(error)}): export it without --merge."
        ) from error
    if tied and model.get_output_embeddings() is not None:
        _tie_if_equal(model)
    return model


def _untie(model: nn.Module) -> None:
    seen = set()
    for name, weight in list(model.named_parameters(remove_duplicate=False)):
        if weight in seen:
            module, _, own = name.rpartition(".")
            copy = nn.Parameter(weight.detach().clone(), requires_grad=False)
            setattr(model.get_submodule(module), own, copy)
        seen.add(weight)


def _tie_if_equal(model: Any) -> None:
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    equal = torch.equal(into.weight, out.weight)
    if equal:
        out.weight = into.weight
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = equal

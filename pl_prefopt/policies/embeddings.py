"""Embeddings of tokens that a model does not know yet: ``PolicySpec.resize_embeddings``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies.spec import PolicySpec

_TOKENS = "trainable_token_indices"


def resize(model: Any, spec: PolicySpec) -> None:
    """Give a base model the embeddings that ``spec`` asks for; a new row is the mean of the model's own rows.

    Nothing is random, so that resumed runs, references and exports have the same base.

    Raises:
        ConfigError: if the model has as many already.
    """
    size = spec.resize_embeddings
    if size is None:
        return
    known = model.get_input_embeddings().weight.shape[0]
    if size <= known:
        raise ConfigError(
            f"Expected policy.resize_embeddings to be above the {known} tokens for which {spec.name} has "
            f"embeddings, got {size}: set it to len(tokenizer), or to null if that isn't higher."
        )
    with torch.random.fork_rng(devices=[]):  # transformers initialises the new rows at random first
        model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for _, module in _embeddings(model):
            for weight in (module.weight, getattr(module, "bias", None)):
                if weight is not None:
                    weight[known:] = weight[:known].float().mean(dim=0).to(weight.dtype)


def training_new_rows(settings: Mapping[str, Any], model: Any, spec: PolicySpec) -> dict[str, Any]:
    """Return the settings of an adapter that also trains the embeddings added by ``resize``.

    Args:
        settings: arguments of ``peft.LoraConfig``.
        model: the resized base model.
        spec: the policy.

    Raises:
        ConfigError: if the settings train single embeddings themselves.
    """
    if spec.resize_embeddings is None:
        return dict(settings)
    if settings.get(_TOKENS):
        raise ConfigError(
            f"policy.resize_embeddings trains the new tokens by itself: remove policy.lora.{_TOKENS}, or "
            "resize the model with transformers and save it."
        )
    new = list(range(spec.vocabulary_size(resized=False), spec.resize_embeddings))
    whole = settings.get("modules_to_save") or ()
    names = [name.rpartition(".")[2] for name, _ in _embeddings(model)]
    indices = {name: new for name in names if name not in whole}
    return {**settings, _TOKENS: indices} if indices else dict(settings)


def _embeddings(model: Any) -> list[tuple[str, Any]]:
    """Return the input embeddings, and the output embeddings if they have a weight of their own."""
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    found = [into] if out is None or out.weight is into.weight else [into, out]
    return [(name, module) for one in found for name, module in model.named_modules() if module is one]

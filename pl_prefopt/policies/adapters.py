"""What an adapter's settings imply for its base and its initial state, before any model is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError, first_line

Settings = Mapping[str, Any]
"""Arguments of ``peft.LoraConfig``, or a saved adapter's configuration."""

_DEFAULTS = {"init_lora_weights": True, "bias": "none", "use_dora": False, "layer_replication": None}
_PLAIN_STARTS = (True, "gaussian")
_EXACT_STARTS = (*_PLAIN_STARTS, False, "orthogonal")
_ALTERING = r"pissa|pissa_niter_\d+|olora"
"""Initialisations that subtract the new adapter from its base."""
_SUPPORTED_STARTS = "true, false, gaussian, orthogonal, olora, pissa and pissa_niter_N"
_REFUSED_STARTS = {
    "eva": "it needs the activations of your data, and without them PEFT starts as with true",
    "corda": "it needs covariances of your data, which PEFT computes in a script of its own",
    "lora_ga": "it needs gradients on your data, and without them PEFT starts as with true",
    "loftq": "it replaces the base by a rounded one; for 4-bit training set policy.four_bit",
    "mica": "it freezes half of the adapter, which checkpoints don't hold",
}
_SUPPORTED = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "target_parameters"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "layer_replication"),
    *("use_rslora", "use_dora", "bias", "lora_bias", "init_lora_weights", "fan_in_fan_out"),
    *("modules_to_save", "trainable_token_indices", "runtime_config"),
    *("task_type", "peft_type", "peft_version", "inference_mode", "auto_mapping", "revision"),
    "base_model_name_or_path",
}
"""Settings for which training, references and exports are tested."""
_WITHOUT_EFFECT = {
    *("megatron_core", "qalora_group_size"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
}
"""Settings that take effect only together with others, which are checked."""
_REFUSED = {
    "alora_invocation_tokens": "which positions it adapts depends on how prompts and responses are laid out",
    "arrow_config": "it mixes other adapters",
    "ensure_weight_tying": "PEFT trains the tied adapter as two parameters over the same memory",
    "kasa_config": "it needs a loss term of its own, and replaces the base by a truncated one",
    "monteclora_config": "it needs a loss term of its own",
    "use_qalora": "PEFT applies it to GPTQ layers only",
}


def check_lora(settings: Settings) -> None:
    """Raise a ``ConfigError`` if a new adapter with these settings can't be trained correctly."""
    start = _of(settings, "init_lora_weights")
    if start in _REFUSED_STARTS:
        raise ConfigError(
            f"policy.lora.init_lora_weights '{start}' is not supported: {_REFUSED_STARTS[start]}. "
            f"Supported are {_SUPPORTED_STARTS}."
        )
    if start not in _EXACT_STARTS and not alters_base(settings):
        raise ConfigError(
            f"Expected policy.lora.init_lora_weights to be one of {_SUPPORTED_STARTS}, got '{start}'."
        )
    refused = _unsupported(settings)
    if refused is not None:
        raise ConfigError(f"policy.lora.{refused}. Remove it.")


def check_saved(folder: str) -> Settings:
    """Return the configuration of a saved adapter.

    Raises:
        ConfigError: if there is none, if its weights are a pickle, or if it is wrong on its plain base.
    """
    refuse_pickled_adapter(folder)
    settings = read_settings(folder)
    start = str(_of(settings, "init_lora_weights"))
    if settings.get("peft_type") == "LORA" and re.fullmatch(rf"{_ALTERING}|corda|loftq|lora_ga", start):
        raise ConfigError(
            f"The adapter '{folder}' was initialised by '{start}', which altered its base, so it is wrong on "
            "the plain base: export it again with `prefopt export`, which converts it, or convert it with "
            "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    refused = _unsupported(settings) if settings.get("peft_type") == "LORA" else None
    if refused is not None:
        raise ConfigError(f"The adapter '{folder}' can't be used here: {refused}.")
    return settings


def read_settings(folder: str) -> Settings:
    """Return a saved adapter's configuration.

    Raises:
        ConfigError: if there is none.
    """
    from peft import PeftConfig

    try:
        settings: Settings = PeftConfig.from_pretrained(folder).to_dict()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"Expected a folder with a PEFT adapter, but '{folder}' has no readable adapter_config.json "
            f"({first_line(error)})."
        ) from error
    return {key: getattr(value, "value", value) for key, value in settings.items()}  # enums by their text


def refuse_pickled_adapter(folder: str) -> None:
    """Raise a ``ConfigError`` if a PEFT folder holds its weights as a pickle, which could run code."""
    if (Path(folder) / "adapter_model.bin").exists() and not list(Path(folder).glob("*.safetensors")):
        raise ConfigError(
            f"The adapter '{folder}' holds adapter_model.bin only, and only safetensors are loaded, since a "
            "pickle could run code: load it where you trust it, and save it again with `save_pretrained`."
        )


def alters_base(settings: Settings) -> bool:
    """Tell whether the initialisation writes to weights of the base."""
    return re.fullmatch(_ALTERING, str(_of(settings, "init_lora_weights")).lower()) is not None


def trains_base(settings: Settings) -> bool:
    """Tell whether base parameters are trained in place, which switching the adapter off doesn't undo."""
    return bool(_of(settings, "bias") != "none")


def keeps_base(settings: Settings) -> bool:
    """Tell whether the model with its adapter off is the plain base, at any time."""
    layers = _of(settings, "layer_replication")
    return not (alters_base(settings) or trains_base(settings) or layers)


def starts_at_base(settings: Settings) -> bool:
    """Tell whether a new adapter changes no log-prob until it is trained, in any number format.

    DoRA's and orthogonal starts do so up to rounding, which in bfloat16 is a lot.
    """
    start = _of(settings, "init_lora_weights")
    return start in _PLAIN_STARTS and not _of(settings, "use_dora") and keeps_base(settings)


def _of(settings: Settings, key: str) -> Any:
    return settings.get(key, _DEFAULTS[key])


def _unsupported(settings: Settings) -> str | None:
    """Return the first setting that isn't supported, and why."""
    defaults = _defaults()
    for key, value in settings.items():
        if key in _SUPPORTED or key in _WITHOUT_EFFECT or not value or value == defaults.get(key):
            continue
        return f"{key} is not supported" + (f": {_REFUSED[key]}" if key in _REFUSED else "")
    return None


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    from peft import LoraConfig

    return {field.name: getattr(LoraConfig(), field.name) for field in dataclasses.fields(LoraConfig)}

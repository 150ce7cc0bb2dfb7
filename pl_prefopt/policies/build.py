"""From a description to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies.spec import PolicySpec, explained, refuse_pickled_adapter

Adapt = Callable[[Any, PolicySpec], Any]


def build_policy(spec: PolicySpec) -> nn.Module:
    """Load the model to train: with its adapter, if it has one, and in training mode.

    Raises:
        ConfigError: if the weights or the adapter can't be loaded.
    """
    return as_policy(_load(spec), spec, _with_adapter)


def build_frozen(spec: PolicySpec) -> nn.Module:
    """Load a model that is only asked for log-probs: no gradients, evaluation mode."""
    return as_frozen(_load(spec), spec, _with_adapter)


def as_policy(model: Any, spec: PolicySpec, adapt: Adapt) -> nn.Module:
    """Make a base model the one to train.

    Args:
        model: the base model.
        spec: how it is trained.
        adapt: puts the adapter of ``spec`` on it.
    """
    _forbid_repacking(model)
    if spec.four_bit is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.has_adapter:
        model = adapt(model, spec)
    policy: nn.Module = model.train()
    return policy


def as_frozen(model: Any, spec: PolicySpec, adapt: Adapt) -> nn.Module:
    """Make a base model one that is only asked for log-probs; the arguments are those of ``as_policy``."""
    _forbid_repacking(model)
    if spec.adapter is not None:
        model = adapt(model, spec)
    frozen: nn.Module = model.eval().requires_grad_(requires_grad=False)
    return frozen


def _forbid_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place when they are first evaluated on a CPU.

    It does so on processors with AVX512-BF16: the scales of the blocks are rounded to bfloat16 for good, what
    de-quantises or differentiates the weights afterwards gets wrong numbers without an error, and a matrix
    narrower than a block can't be evaluated at all.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def read_config(spec: PolicySpec) -> Any:
    """Return the model's configuration, as ``spec`` wants it."""
    from transformers import AutoConfig

    source = {"gguf_file": spec.gguf_file, "revision": spec.revision}
    config = AutoConfig.from_pretrained(spec.name, **source, trust_remote_code=spec.trust_remote_code)
    if not spec.dropout:
        _silence_dropout(config)
    return config


def _load(spec: PolicySpec) -> Any:
    from transformers import AutoModelForCausalLM

    with explained(spec.name, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            spec.name,
            config=read_config(spec),
            dtype=spec.dtype,
            attn_implementation=spec.attn_implementation,
            quantization_config=four_bit_config(spec),
            trust_remote_code=spec.trust_remote_code,
            # Pickled weights could run code. GGUF holds none, and transformers wants nothing said of it.
            use_safetensors=True if spec.gguf_file is None else None,
            gguf_file=spec.gguf_file,
            revision=spec.revision,
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if spec.gguf_file is not None and quantizer is not None:
        # GGUF weights are de-quantised while loading, but the model still calls itself quantised and would
        # refuse to be saved.
        quantizer.remove_quantization_config(model)
    return model


def _silence_dropout(config: Any) -> None:
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)


def four_bit_config(spec: PolicySpec) -> Any:
    """Return what transformers takes as ``quantization_config``, or ``None``.

    Raises:
        ConfigError: if bitsandbytes is missing.
    """
    if spec.four_bit is None:
        return None
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError("policy.four_bit needs bitsandbytes: pip install 'pl-prefopt[qlora]'.") from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.four_bit.kind,
        bnb_4bit_use_double_quant=spec.four_bit.double,
        bnb_4bit_compute_dtype=getattr(torch, spec.four_bit.compute),
    )


def _with_adapter(model: Any, spec: PolicySpec) -> Any:
    from peft import PeftModel

    if spec.adapter is None:
        return with_new_adapter(model, spec)
    refuse_pickled_adapter(spec.adapter)
    with explained(spec.adapter, "PEFT adapter"):
        return PeftModel.from_pretrained(model, spec.adapter, is_trainable=True)


def with_new_adapter(model: Any, spec: PolicySpec) -> Any:
    """Put the adapter on ``model`` that ``spec.lora`` describes, untrained.

    Raises:
        ConfigError: if it doesn't fit the model.
    """
    from peft import LoraConfig, get_peft_model

    settings = {"task_type": "CAUSAL_LM", **(spec.lora or {})}
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except ValueError as error:
        raise ConfigError(f"policy.lora doesn't fit '{spec.name}': {error}") from error

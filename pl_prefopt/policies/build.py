"""From a description to a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies.spec import PolicySpec, explained, refuse_pickled_adapter


def build_policy(spec: PolicySpec) -> nn.Module:
    """Load the model to train: with its adapter, if it has one, and in training mode.

    Raises:
        ConfigError: if the weights or the adapter can't be loaded.
    """
    model = _load(spec)
    if spec.four_bit is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.has_adapter:
        model = _with_adapter(model, spec)
    policy: nn.Module = model.train()
    return policy


def build_frozen(spec: PolicySpec) -> nn.Module:
    """Load a model that is only asked for log-probs: no gradients, evaluation mode."""
    model = _load(spec)
    if spec.adapter is not None:
        model = _with_adapter(model, spec)
    frozen: nn.Module = model.eval().requires_grad_(requires_grad=False)
    return frozen


def _load(spec: PolicySpec) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with explained(spec.name, "model"):
        source = {"gguf_file": spec.gguf_file, "revision": spec.revision}
        config = AutoConfig.from_pretrained(spec.name, **source, trust_remote_code=spec.trust_remote_code)
        if not spec.dropout:
            _silence_dropout(config)
        model = AutoModelForCausalLM.from_pretrained(
            spec.name,
            config=config,
            dtype=spec.dtype,
            attn_implementation=spec.attn_implementation,
            quantization_config=_four_bit(spec),
            trust_remote_code=spec.trust_remote_code,
            # Pickled weights could run code. GGUF holds none, and transformers wants nothing said of it.
            use_safetensors=True if spec.gguf_file is None else None,
            **source,
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


def _four_bit(spec: PolicySpec) -> Any:
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
    from peft import LoraConfig, PeftModel, get_peft_model

    if spec.adapter is not None:
        refuse_pickled_adapter(spec.adapter)
        with explained(spec.adapter, "PEFT adapter"):
            return PeftModel.from_pretrained(model, spec.adapter, is_trainable=True)
    settings = {"task_type": "CAUSAL_LM", **(spec.lora or {})}
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except ValueError as error:
        raise ConfigError(f"policy.lora doesn't fit '{spec.name}': {error}") from error

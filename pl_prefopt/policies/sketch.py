"""Models without their weights: every tensor is on the meta device, with a shape and a dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pl_prefopt.attention import loaded_with, want
from pl_prefopt.policies.build import as_frozen, as_policy, four_bit_config, read_config, with_new_adapter
from pl_prefopt.policies.embeddings import resize
from pl_prefopt.policies.spec import PolicySpec, explained


def sketch_policy(spec: PolicySpec) -> nn.Module:
    """Return what ``build_policy`` would, on the meta device; 4-bit layers still have their whole weight.

    Args:
        spec: the model to train. Only its configuration is read, and its adapter's.

    Raises:
        ConfigError: if there is no such configuration, or the adapter does not fit.
    """
    with torch.device("meta"):
        return as_policy(_outline(spec), spec, _with_adapter)


def sketch_frozen(spec: PolicySpec) -> nn.Module:
    """Return what ``build_frozen`` would, on the meta device; see ``sketch_policy``."""
    with torch.device("meta"):
        return as_frozen(_outline(spec), spec, _with_adapter)


def sketch_second_adapter(policy: Any, folder: str) -> None:
    """Add a frozen adapter alongside the policy's own, as ``NamedAdapter`` does.

    Args:
        policy: what ``sketch_policy`` returned.
        folder: where PEFT saved the adapter.
    """
    from peft import PeftConfig

    name = f"sketch_{len(policy.peft_config)}"
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    with torch.device("meta"):
        policy.add_adapter(name, PeftConfig.from_pretrained(folder))
    policy.requires_grad_(requires_grad=False)
    for weight in trained:
        weight.requires_grad_()


def _outline(spec: PolicySpec) -> Any:
    from transformers import AutoModelForCausalLM

    with explained(spec.name, "model"):
        config = read_config(spec)
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=_dtype(spec, config),
            attn_implementation=loaded_with(spec.attn_implementation, config),
            trust_remote_code=spec.trust_remote_code,
        )
    model.tie_weights()  # not all versions do so on the meta device
    quantisation = four_bit_config(spec)
    if quantisation is not None:
        from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

        quantizer = Bnb4BitHfQuantizer(quantisation, pre_quantized=False)
        # Versions of transformers differ in which of these they take; all of them take more by name.
        quantizer.preprocess_model(model=model, config=config, dtype=model.dtype, device_map=None)
        quantizer.postprocess_model(model)
    resize(model, spec)
    want(model, spec.attn_implementation)
    return model


def _dtype(spec: PolicySpec, config: Any) -> torch.dtype:
    """Return the weights' type; where ``auto`` finds none in the configuration, float32 as in torch."""
    named = config.dtype if spec.dtype == "auto" else spec.dtype
    return named if isinstance(named, torch.dtype) else getattr(torch, named or "float32")


def _with_adapter(model: Any, spec: PolicySpec) -> Any:
    from peft import PeftConfig, get_peft_model

    if spec.adapter is None:
        return with_new_adapter(model, spec)
    with explained(spec.adapter, "PEFT adapter"):
        config = PeftConfig.from_pretrained(spec.adapter)
    config.inference_mode = False
    return get_peft_model(model, config)

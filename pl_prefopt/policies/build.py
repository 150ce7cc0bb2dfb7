"""From a description to a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.attention import loaded_with, want
from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.policies.adapters import alters_base, starts_at_base, trains_base
from pl_prefopt.policies.embeddings import resize, training_new_rows
from pl_prefopt.policies.spec import PolicySpec, explained

Adapt = Callable[[Any, PolicySpec], Any]
_SEED = 0


def build_policy(spec: PolicySpec, *, logits: bool = True) -> nn.Module:
    """Load the model to train: with its adapter, if it has one, and in training mode.

    Args:
        spec: the model.
        logits: whether logits are computed; if not, the folder may lack output embeddings, as those of
            reward models do.

    Raises:
        ConfigError: if the weights or the adapter can't be loaded.
    """
    spec.adapter_settings()  # refused before the weights are read
    return as_policy(_load(spec, logits=logits), spec, _with_adapter)


def build_frozen(spec: PolicySpec, *, logits: bool = True) -> nn.Module:
    """Load a model that only computes log-probs: no gradients, evaluation mode; see ``build_policy``."""
    spec.adapter_settings()  # refused before the weights are read
    return as_frozen(_load(spec, logits=logits), spec, _with_adapter)


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
    """Freeze a base model that only computes log-probs; the arguments are those of ``as_policy``."""
    _forbid_repacking(model)
    if spec.adapter is not None:
        model = adapt(model, spec)
    frozen: nn.Module = model.eval().requires_grad_(requires_grad=False)
    return frozen


def _forbid_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place when they are first evaluated on a CPU.

    It does so on processors with AVX512-BF16: the block scales are rounded to bfloat16 permanently,
    de-quantised weights and gradients are then wrong without an error, and a matrix narrower than a block
    can't be evaluated at all.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def read_config(spec: PolicySpec) -> Any:
    """Return the model's configuration with the settings of ``spec``."""
    from transformers import AutoConfig

    source = {"gguf_file": spec.gguf_file, "revision": spec.revision}
    config = AutoConfig.from_pretrained(spec.name, **source, trust_remote_code=spec.trust_remote_code)
    if not spec.dropout:
        _silence_dropout(config)
    return config


def _load(spec: PolicySpec, *, logits: bool) -> Any:
    from transformers import AutoModelForCausalLM

    with explained(spec.name, "model"):
        config = read_config(spec)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            spec.name,
            output_loading_info=True,
            config=config,
            dtype=spec.dtype,
            attn_implementation=loaded_with(spec.attn_implementation, config),
            quantization_config=four_bit_config(spec),
            trust_remote_code=spec.trust_remote_code,
            # Pickled weights could run code. GGUF holds none, and needs the argument to be unset.
            use_safetensors=True if spec.gguf_file is None else None,
            gguf_file=spec.gguf_file,
            revision=spec.revision,
        )
    _check_complete(model, loaded["missing_keys"], spec, logits=logits)
    quantizer = getattr(model, "hf_quantizer", None)
    if spec.gguf_file is not None and quantizer is not None:
        # GGUF weights are de-quantised while loading, but the model is still marked as quantised, and
        # couldn't be saved.
        quantizer.remove_quantization_config(model)
    resize(model, spec)
    want(model, spec.attn_implementation)
    return model


def _check_complete(model: Any, missing: Collection[str], spec: PolicySpec, *, logits: bool) -> None:
    """Refuse a folder without some of the model's weights, which transformers initialises at random.

    Raises:
        ConfigError: naming one of them.
    """
    head = model.get_output_embeddings()
    spared = [name for name, part in model.named_modules() if part is head and not logits]
    lacking = sorted(name for name in missing if name.rpartition(".")[0] not in spared)
    if lacking:
        raise ConfigError(
            f"Expected '{spec.name}' to have all weights of {type(model).__name__}, but it lacks "
            f"{len(lacking)}, such as '{lacking[0]}', which would be random: name a causal language model; a "
            "reward model or another classifier gives no log-probs."
        )


def has_dropout(spec: PolicySpec) -> bool:
    """Return whether the policy is trained with dropout, of its adapter or its own; no model is loaded."""
    of_adapter = (spec.adapter_settings() or {}).get("lora_dropout") or 0.0
    if of_adapter > 0 or not spec.dropout:
        return bool(of_adapter > 0)
    rates = _dropout_rates(read_config(spec).get_text_config())
    return any(rate for name, rate in rates.items() if not name.startswith(_OF_CLASSIFIERS))


_OF_CLASSIFIERS = ("classifier_", "summary_")
"""Begins the names of rates of heads that a causal language model doesn't have."""


def _silence_dropout(config: Any) -> None:
    parts = (getattr(config, name, None) for name in config.sub_configs)
    for one in (config, *filter(None, parts)):
        for key in _dropout_rates(one):
            setattr(one, key, 0.0)


def _dropout_rates(config: Any) -> dict[str, float]:
    return {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop"))
    }


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
    """Add the adapter to its base, and check that it changes the base only as its settings say."""
    settings, base = spec.adapter_settings() or {}, _Base.of(model)
    policy = with_new_adapter(model, spec) if spec.adapter is None else _with_saved_adapter(model, spec)
    may_alter = spec.adapter is None and alters_base(settings)
    for changed, expected in ((base.altered(), may_alter), (base.trained(), False)):
        # Biases that are trained in place are a saved adapter's, too.
        unexpected = [name for name in changed if not (trains_base(settings) and name.endswith("bias"))]
        if unexpected and not expected:
            label = "policy.lora" if spec.adapter is None else f"The adapter '{spec.adapter}'"
            raise ConfigError(
                f"{label} changes or trains '{unexpected[0]}' of the base in place, which its settings don't "
                "say, so references would drift: use another adapter, or plain settings of LoRA."
            )
    return policy


def _with_saved_adapter(model: Any, spec: PolicySpec) -> Any:
    from peft import PeftModel

    with explained(str(spec.adapter), "PEFT adapter"):
        return PeftModel.from_pretrained(model, spec.adapter, is_trainable=True)


def with_new_adapter(model: Any, spec: PolicySpec) -> Any:
    """Add the untrained adapter that ``spec.lora`` describes to ``model``.

    Where its initial state differs from the base, it is sampled with a fixed seed, so that resumed runs,
    exports and tables of log-probs have the same one.

    Raises:
        ConfigError: if it doesn't fit the model.
    """
    from peft import LoraConfig, get_peft_model

    settings = training_new_rows({"task_type": "CAUSAL_LM", **(spec.lora or {})}, model, spec)
    try:
        with nullcontext() if starts_at_base(settings) else torch.random.fork_rng(devices=[]):
            if not starts_at_base(settings):
                torch.manual_seed(_SEED)
            return get_peft_model(model, LoraConfig(**settings))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"policy.lora doesn't fit '{spec.name}': {first_line(error)}") from error


@dataclass(frozen=True)
class _Base:
    """A base model's parameters, and a few elements of each as loaded."""

    held: list[tuple[str, nn.Parameter, Tensor]]

    @classmethod
    def of(cls, model: nn.Module) -> _Base:
        return cls([(name, weight, _few(weight)) for name, weight in model.named_parameters()])

    def altered(self) -> list[str]:
        """Return the parameters that have changed."""
        return [name for name, weight, few in self.held if not torch.equal(_few(weight), few)]

    def trained(self) -> list[str]:
        """Return the parameters that are trained themselves."""
        return [name for name, weight, _ in self.held if weight.requires_grad]


def _few(weight: Tensor) -> Tensor:
    """Copy elements spread over a tensor: changing or rounding a matrix changes nearly all of them."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // 64)].clone()

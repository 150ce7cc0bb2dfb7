"""Small random models of the architectures that the scorer must agree with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import nn

VOCABULARY = 120
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SMALL = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_GPT2 = {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=512),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SMALL),
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "mistral_window_4": lambda: transformers.MistralConfig(**_GROUPED, sliding_window=4),
    "gemma3_window_4": lambda: transformers.Gemma3TextConfig(
        **_GROUPED, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "qwen2_window_4": lambda: transformers.Qwen2Config(
        **_GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
}


def build(name: str, attention: str = "sdpa") -> nn.Module:
    """Return a random model in evaluation mode."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention)
    return model.eval()

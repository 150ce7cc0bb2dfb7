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

_DECODER = {
    **_COMMON,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "init_std": 0.3,
    "is_decoder": True,
    "is_encoder_decoder": False,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 10,
}
_LONG = {**_GROUPED, "max_position_embeddings": 512}

ODD: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    # Windows where a model's mask applies them, in a buffer, and where only its configuration has one.
    "mistral_window_20": lambda: transformers.MistralConfig(**_LONG, sliding_window=20),
    "gpt_neo_window_20": lambda: transformers.GPTNeoConfig(
        **_COMMON,
        hidden_size=32,
        num_heads=4,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        window_size=20,
        max_position_embeddings=128,
        initializer_range=0.3,
    ),
    "moshi_window_20": lambda: transformers.MoshiConfig(
        **_LONG, head_dim=8, ffn_dim=64, sliding_window=20, num_codebooks=1
    ),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**_GPT2, n_inner=64),
    # Positions and masks that a model chooses for itself.
    "roberta": lambda: transformers.RobertaConfig(
        **{**_SMALL, "pad_token_id": 1, "bos_token_id": 0}, max_position_embeddings=128, is_decoder=True
    ),
    "opt": lambda: transformers.OPTConfig(
        **_COMMON,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        init_std=0.3,
    ),
    "bart": lambda: transformers.BartConfig(**_DECODER),
    "roformer": lambda: transformers.RoFormerConfig(**_SMALL, embedding_size=32, is_decoder=True),
    "rwkv": lambda: transformers.RwkvConfig(**_COMMON, hidden_size=32, num_hidden_layers=2),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
        **{**_GROUPED, "num_hidden_layers": 3}, head_dim=8, lru_width=32, attention_window_size=8
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **_GROUPED,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=4,
        attention_chunk_size=8,
        attn_temperature_tuning=True,
        floor_scale=4,
        no_rope_layers=[1, 0],
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_GROUPED, num_local_experts=4),
    # Frequencies of a whole batch by its longest row; a choice among tokens in which equal ones tie.
    "phi3_longrope": lambda: transformers.Phi3Config(
        **_GROUPED, max_position_embeddings=64, rope_parameters=_LONGROPE
    ),
    "doge": lambda: transformers.DogeConfig(**_GROUPED, keep_window_size=8),
}
"""Models that a careless batch gives other numbers, in silence."""


def build(name: str, attention: str = "sdpa") -> nn.Module:
    """Return a random model in evaluation mode."""
    torch.manual_seed(0)
    config = (CONFIGS | ODD)[name]()
    how = {"attn_implementation": attention} if name in CONFIGS else {}
    model = transformers.AutoModelForCausalLM.from_config(config, **how)
    if name in ODD:
        _spread(model)
    return model.eval()


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw all weights anew: not every architecture heeds ``initializer_range``, and some start at zero."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=1.0 if "embed" in name else 1.5 * weight.shape[-1] ** -0.5)

"""Adapters of every kind, and runs that trained them, made without training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pl_prefopt.modules.checkpoints import describe
from pl_prefopt.policies import PolicySpec, build_policy
from tests.support import tiny_tokenizer

STARTS = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, approximated": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "all biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "bias of the adapter": {"lora_bias": True},
    "dora": {"use_dora": True},
    "whole modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [5, 6, 7]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "replicated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 32}},
}


def save_tied_model(folder: Path) -> Path:
    """Write a model with biases, whose embeddings are tied, and its tokeniser."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        attention_bias=True,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    base = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in base.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.2)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_run(folder: Path, spec: PolicySpec, **data: Any) -> tuple[Path, Any]:
    """Write a run whose trained weights have moved at random; return its checkpoint and its policy."""
    policy = build_policy(spec)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    content = {
        "state_dict": {f"policy.{name}": weight.detach() for name, weight in trained.items()},
        "global_step": 1,
        "pl_prefopt": describe("DPO", spec, spec.base_identity, spec.adapter_identity),
    }
    torch.save(content, checkpoint)
    save_config(folder, spec, **data)
    return checkpoint, policy.eval()


def save_config(folder: Path, spec: PolicySpec, *, objective: str = "DPO", **data: Any) -> Path:
    """Write the ``config.yaml`` of a run."""
    model = {
        "policy": dataclasses.asdict(spec),
        "objective": {"class_path": f"pl_prefopt.objectives.{objective}"},
    }
    others: dict[str, Any] = {key: {} for key in ("trainer", "references", "best", "last")}
    described = {"model": {"init_args": model}, "data": data, "run_dir": str(folder), **others}
    (folder / "config.yaml").write_text(json.dumps(described))
    return folder / "config.yaml"

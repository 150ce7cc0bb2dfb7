"""Tests on a GPU: `make test-gpu`. `PREFOPT_GPU_TESTS=cpu` runs the same bodies on the CPU, as a dry run."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support import tiny_tokenizer

DRY = os.environ.get("PREFOPT_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items):
    absent = not DRY and not torch.cuda.is_available()
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if absent:
                reason = "there is no CUDA GPU; PREFOPT_GPU_TESTS=cpu runs it on the CPU"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device():
    return torch.device("cpu" if DRY else "cuda")


@pytest.fixture(scope="session")
def accelerator(device):
    return "cpu" if device.type == "cpu" else "gpu"


@pytest.fixture(scope="session")
def gpu_model(tmp_path_factory):
    """A small Llama with heads of 64, which kernels take."""
    return save_llama(tmp_path_factory.mktemp("gpu-model"), hidden=256, layers=2)


@pytest.fixture(scope="session")
def windowed_model(tmp_path_factory):
    """A small Gemma 3: layers with a sliding window and without, and heads of 64."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return save(
        tmp_path_factory.mktemp("windowed-model"),
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.1,
    )


@pytest.fixture(scope="session")
def large_model(tmp_path_factory, device):
    """A model so large that what CUDA rounds up doesn't matter; as small as the other one on a CPU."""
    size = {"hidden": 256, "layers": 2} if device.type == "cpu" else {"hidden": 1024, "layers": 12}
    return save_llama(tmp_path_factory.mktemp("large-model"), **size)


def save_llama(folder, *, hidden, layers):
    from transformers import LlamaConfig, LlamaForCausalLM

    return save(
        folder,
        LlamaForCausalLM,
        LlamaConfig,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        initializer_range=0.05,
    )


def save(folder, model, config, **sizes):
    """Save a model with random weights, always the same, and its tokeniser."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    special = {"pad_token_id": 4, "eos_token_id": 2, "bos_token_id": None}
    model(
        config(vocab_size=len(tokenizer), max_position_embeddings=1024, **special, **sizes)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

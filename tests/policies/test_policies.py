"""Describing and loading policies."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies import FourBit, PolicySpec, build_frozen, build_policy, has_dropout
from pl_prefopt.policies.build import read_config
from tests.gguf_files import write_tiny_gguf
from tests.support import tiny_llama

LORA = {"r": 4, "target_modules": "all-linear"}


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_full_fine_tuning_trains_every_weight(tiny_model):
    policy = build_policy(PolicySpec(name=str(tiny_model)))
    assert policy.training
    assert trained(policy) == {name for name, _ in policy.named_parameters()}


def test_lora_trains_the_adapter_only(tiny_model):
    policy = build_policy(PolicySpec(name=str(tiny_model), lora=LORA))
    assert trained(policy)
    assert all("lora_" in name for name in trained(policy))


def test_an_adapter_is_taken_up_again_with_its_weights(tiny_model, tmp_path):
    first = build_policy(PolicySpec(name=str(tiny_model), lora=LORA))
    with torch.no_grad():
        for name, weight in first.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    first.save_pretrained(tmp_path / "adapter")
    second = build_policy(PolicySpec(name=str(tiny_model), adapter=str(tmp_path / "adapter")))
    assert trained(second) == trained(first)
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(first(input_ids=ids).logits, second(input_ids=ids).logits)
    frozen = build_frozen(PolicySpec(name=str(tiny_model), adapter=str(tmp_path / "adapter")))
    assert isinstance(frozen, PeftModel)
    assert not trained(frozen)


def test_dropout_is_off_unless_asked_for(tmp_path):
    config = GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0.5, resid_pdrop=0.5)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    quiet = build_policy(PolicySpec(name=str(tmp_path)))
    assert torch.equal(quiet(input_ids=ids).logits, quiet(input_ids=ids).logits)
    noisy = build_policy(PolicySpec(name=str(tmp_path), dropout=True))
    assert not torch.equal(noisy(input_ids=ids).logits, noisy(input_ids=ids).logits)


def test_dtype_and_attention_are_passed_on(tiny_model):
    policy = build_policy(
        PolicySpec(name=str(tiny_model), dtype="bfloat16", attn_implementation="eager", lora=LORA)
    )
    base = policy.get_base_model()
    assert base.config._attn_implementation == "eager"
    assert base.get_input_embeddings().weight.dtype == torch.bfloat16


def test_gradient_checkpointing_changes_no_gradient(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        spec = PolicySpec(name=str(tiny_model), lora=LORA, gradient_checkpointing=checkpointing)
        policy = build_policy(spec)
        assert policy.get_base_model().is_gradient_checkpointing == checkpointing
        policy(input_ids=torch.arange(5, 15)[None]).logits.square().sum().backward()
        gradients.append([weight.grad for weight in policy.parameters() if weight.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_four_bit_without_an_adapter_cannot_be_trained(tiny_model):
    with pytest.raises(ConfigError, match="four_bit needs policy"):
        PolicySpec(name=str(tiny_model), four_bit=FourBit()).check_trainable()


@pytest.mark.parametrize("load", [build_policy, PolicySpec.load_tokenizer], ids=["model", "tokenizer"])
def test_a_missing_model_is_one_sentence_with_the_nearest_folder(tiny_model, load):
    with pytest.raises(ConfigError, match=rf"did you mean '{tiny_model}'"):
        load(PolicySpec(name=f"{tiny_model}s"))


def test_lora_settings_are_checked_before_anything_loads():
    with pytest.raises(ConfigError, match="no setting 'ranks'"):
        PolicySpec(name="nothing", lora={"ranks": 8})
    with pytest.raises(ConfigError, match="exclude each other"):
        PolicySpec(name="nothing", lora=LORA, adapter="somewhere")


def test_lora_that_does_not_fit_the_model_is_one_sentence(tiny_model):
    with pytest.raises(ConfigError, match="doesn't fit"):
        build_policy(PolicySpec(name=str(tiny_model), lora={"target_modules": ["nowhere"]}))


def test_the_fingerprint_follows_the_weights_and_not_the_path(tiny_model, tmp_path):
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert PolicySpec(name=str(moved)).fingerprint == PolicySpec(name=str(tiny_model)).fingerprint
    config = AutoConfig.from_pretrained(tiny_model)
    tiny_llama(config.vocab_size, seed=7).save_pretrained(moved)
    assert PolicySpec(name=str(moved)).fingerprint != PolicySpec(name=str(tiny_model)).fingerprint


def test_a_base_is_known_by_its_weights(tiny_model, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    (moved / "tokenizer_config.json").write_text("{}")
    for other in ("training_args.bin", "model-q4.gguf"):  # nothing that it is loaded from
        (moved / other).write_text("other")
    base = PolicySpec(name=str(tiny_model)).base_identity
    assert PolicySpec(name=str(moved), dtype="bfloat16").base_identity == base
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert PolicySpec(name=str(moved)).base_identity != base


def test_the_fingerprint_follows_the_number_format(tiny_model):
    name = str(tiny_model)
    assert PolicySpec(name=name, dtype="bfloat16").fingerprint != PolicySpec(name=name).fingerprint
    # What changes no log-prob of the base changes no fingerprint.
    assert PolicySpec(name=name, gradient_checkpointing=True).fingerprint == PolicySpec(name=name).fingerprint


def test_gguf_weights_load_as_they_are_and_can_be_saved(tmp_path):
    pytest.importorskip("gguf")
    spec = PolicySpec(name=str(tmp_path), gguf_file=write_tiny_gguf(tmp_path))
    tokenizer = spec.load_tokenizer()
    assert tokenizer.encode("<|im_end|>") == [2] == [tokenizer.eos_token_id]
    ids, original = torch.arange(5, 15)[None], tiny_llama(len(spec.load_tokenizer()))
    policy = build_policy(spec)
    torch.testing.assert_close(policy(input_ids=ids).logits, original(input_ids=ids).logits)
    merged = build_policy(dataclasses.replace(spec, lora=LORA)).merge_and_unload()
    merged.save_pretrained(tmp_path / "saved")
    again = build_policy(PolicySpec(name=str(tmp_path / "saved")))
    torch.testing.assert_close(again(input_ids=ids).logits, original(input_ids=ids).logits)


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    classifier = LlamaForSequenceClassification(config)
    classifier.save_pretrained(tmp_path)
    spec = PolicySpec(name=str(tmp_path))
    for build in (build_policy, build_frozen):
        with pytest.raises(ConfigError, match=r"all weights of LlamaForCausalLM.*such as 'lm_head\.weight'"):
            build(spec)
    model = build_policy(spec, logits=False)
    assert torch.equal(model.model.norm.weight, classifier.model.norm.weight)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1, such as 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        build_policy(spec, logits=False)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPTNeoXConfig(classifier_dropout=0.1), False),
        (GPTNeoXConfig(hidden_dropout=0.1), True),
        (GPT2Config(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, summary_first_dropout=0.1), False),
        (Gemma3Config(text_config={"attention_dropout": 0.1}), True),
        (Gemma3Config(), False),
    ],
)
def test_dropout_is_that_of_parts_that_are_run(tmp_path, config, expected):
    """Not that of a classifier's head; nested rates count, and are silenced where dropout is off."""
    config.save_pretrained(tmp_path)
    spec = PolicySpec(name=str(tmp_path), dropout=True)
    assert has_dropout(spec) is expected
    silent = dataclasses.replace(spec, dropout=False)
    assert not has_dropout(silent)
    assert not getattr(read_config(silent).get_text_config(), "attention_dropout", 0.0)

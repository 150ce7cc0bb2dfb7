"""SmolLM2-135M on real dialogues: what tiny random models can't show."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.judges import ImplicitReward, JudgedRow, StrongOverWeak
from pl_prefopt.policies import PolicySpec, build_frozen
from pl_prefopt.rows import Message
from pl_prefopt.scoring import Scorer
from pl_prefopt.scoring.layouts import TreeLayout
from pl_prefopt.types import PLAIN

pytestmark = pytest.mark.real_model
MODEL = Path(__file__).parents[1] / ".cache" / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def spec():
    if not (MODEL / "model.safetensors").is_file():
        pytest.skip(f"SmolLM2 is not at {MODEL}; type `make model`")
    return PolicySpec(name=str(MODEL))


@pytest.fixture(scope="module")
def model(spec):
    return build_frozen(spec)


@pytest.mark.parametrize("name", ["hh_harmless.jsonl.gz", "alpacaeval_ranked.jsonl.gz"])
def test_prompts_computed_once_give_the_same_log_probs(spec, model, shared_data, tmp_path, name):
    datamodule = PreferenceDataModule(
        str(shared_data / name),
        tokenizer=spec.name,
        max_rows=3,
        max_prompt_length=48,
        max_response_length=32,
        cache_dir=str(tmp_path),
    )
    datamodule.prepare_data()
    datamodule.setup("fit")
    tree = datamodule.datasets["train"].batch([0, 1, 2]).trees[PLAIN]
    scorer = Scorer()
    with torch.no_grad():
        shared, plain = scorer(model, tree), Scorer("plain")(model, tree)
    assert isinstance(scorer._shared, TreeLayout)
    assert (shared.sum - plain.sum).abs().max() < 2e-3
    assert plain.sum[tree.response_mask.any(-1)].max() < -1


def test_bfloat16_is_no_reason_to_compute_prompts_again(spec):
    """Its rounding is no sign of an ignored mask: among special tokens it is several nats."""
    scorer, half = Scorer(), build_frozen(dataclasses.replace(spec, dtype="bfloat16"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer.prefix_cache(half, torch.device("cpu")) is not None
    assert isinstance(scorer._shared, TreeLayout)


def test_the_model_prefers_sense_to_nonsense(spec, model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "What is the capital of France?", "chosen": "The capital of France is Paris.", '
        '"rejected": "The capital of France is purple."}\n'
    )
    datamodule = PreferenceDataModule(str(rows), tokenizer=spec.name, cache_dir=str(tmp_path / "cache"))
    datamodule.prepare_data()
    datamodule.setup("fit")
    with torch.no_grad():
        found = Scorer()(model, datamodule.datasets["train"].batch([0]).trees[PLAIN]).mean[0]
    assert found[0] > found[1] + 0.5
    assert found[0] > -1


def test_implicit_rewards_and_dr_sow_equal_plain_transformers(spec, tmp_path):
    """To 1e-4, with prompts computed once, batches of rows of several lengths, and an adapted policy."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    rows = [
        (
            "What is the capital of France?",
            ["The capital of France is Paris.", "No."],
        ),
        ("Write one sentence on foxes.", ["Foxes are small animals that hunt at dusk and dawn.", "Fox. 🦊"]),
    ]
    judged = [
        JudgedRow(
            prompt=(Message("user", prompt),), responses=tuple((Message("assistant", one),) for one in texts)
        )
        for prompt, texts in rows
    ]

    def log_probs(model, before=""):
        return [
            log_prob(model, tokenizer, f"{before}{prompt}", text) for prompt, texts in rows for text in texts
        ]

    torch.manual_seed(0)
    of_base, of_safe = log_probs(base), log_probs(base, "Answer safely.\n\n")
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path)
    of_adapted = log_probs(adapted.eval())
    policy = dataclasses.replace(spec, adapter=str(tmp_path))

    def found(judge):
        with judge:
            return [score for verdict in judge.verdicts(judged) for score in verdict.scores]

    implicit = [one - other for one, other in zip(of_adapted, of_base, strict=True)]
    assert min(map(abs, implicit)) > 0.01
    assert found(ImplicitReward(policy, spec)) == pytest.approx(implicit, abs=1e-4)
    ratio = [one - other for one, other in zip(of_safe, of_adapted, strict=True)]
    assert found(StrongOverWeak(spec, policy, instruction="Answer safely.")) == pytest.approx(ratio, abs=1e-4)


def log_prob(model, tokenizer, prompt, text):
    """The log-prob of a response and its end token, one row per pass."""
    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
    ids = tokenizer(f"{head}{text}<|im_end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
    return float(log_probs.gather(-1, ids[0, 1:, None])[start - 1 :].sum())

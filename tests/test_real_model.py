"""SmolLM2-135M on real dialogues: what tiny random models can't show."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.policies import PolicySpec, build_frozen
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

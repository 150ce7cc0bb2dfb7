"""Gemma 3 270M as a reference of SmolLM2-135M: another architecture, another tokeniser, no chat template."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import FrozenModel
from pl_prefopt.references.precompute import Workers, fill_table
from pl_prefopt.references.tables import TableFile
from tests.runs import write_rows

pytestmark = pytest.mark.real_model
MODELS = Path(__file__).parents[1] / ".cache" / "models"
POLICY, GEMMA = MODELS / "SmolLM2-135M-Instruct", MODELS / "Gemma-3-270M"


@pytest.fixture
def rows(shared_data):
    """The three shortest of the real rows whose scores differ."""
    with gzip.open(shared_data / "alpacaeval_ranked.jsonl.gz", "rt", encoding="utf-8") as file:
        every = [json.loads(line) for line in file]
    scored = [row for row in every if len(set(row["scores"])) > 1]
    scored.sort(key=lambda row: len(row["prompt"]) + sum(map(len, row["responses"])))
    return [{key: row[key] for key in ("prompt", "responses", "scores")} for row in scored[:3]]


def by_hand(model, tokenizer, prompt, response):
    """Σ log π of a response and one end token, of text that is written here."""
    before = f"User: {prompt}\n\nAssistant:"
    start = tokenizer(before)["input_ids"]
    whole = [*tokenizer(f"{before} {response}")["input_ids"], tokenizer.eos_token_id]
    assert whole[: len(start)] == start
    assert (whole.count(tokenizer.bos_token_id), whole.count(tokenizer.eos_token_id)) == (1, 1)
    with torch.no_grad():
        log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(log_probs[place - 1, whole[place]].item() for place in range(len(start), len(whole)))


def test_stored_log_probs_are_those_of_the_text_read_anew(rows, tmp_path):
    for folder in (POLICY, GEMMA):
        if not (folder / "model.safetensors").is_file():
            pytest.skip(f"{folder} is missing; type `make model gemma`")
    datamodule = PreferenceDataModule(
        write_rows(tmp_path / "rows.jsonl", rows), tokenizer=str(POLICY), cache_dir=str(tmp_path / "cache")
    )
    datamodule.prepare_data()
    datamodule.setup("fit")
    dataset = datamodule.datasets["train"]
    reference = FrozenModel(PolicySpec(name=str(GEMMA)))
    host = SimpleNamespace(device=torch.device("cpu"), policy_spec=PolicySpec(name=str(POLICY)))
    reference.prepare(host, {"train": dataset})
    file = TableFile(folder=tmp_path / "table", dataset=dataset, view="plain", rendering="plain")
    alone = Workers(rank=0, count=1, wait=lambda: None)
    fill_table(reference, host, file, batch_size=2, workers=alone)
    reference.release()
    model = AutoModelForCausalLM.from_pretrained(GEMMA, dtype=torch.float32).eval()
    stored = file.read()
    for number, row in enumerate(rows):
        expected = [by_hand(model, reference.renderer.tokenizer, row["prompt"], r) for r in row["responses"]]
        assert stored[number, : len(expected)].tolist() == pytest.approx(expected, abs=5e-3)
        assert stored[number, len(expected) :].isnan().all()

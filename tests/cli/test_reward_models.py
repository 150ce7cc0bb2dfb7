"""Reward models on the command line: trained, tested, predicted with, planned and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pl_prefopt.data.formats import to_row
from pl_prefopt.modules import RewardScorer
from tests.runs import metrics_of, pair_rows, write_rows

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_reward_model_is_trained_predicted_with_and_exported(prefopt, tmp_path, tiny_model):
    records = [{**row, "margin": number / 2} for number, row in enumerate(pair_rows(8))]
    rows = write_rows(tmp_path / "rows.jsonl", records)
    files = (CONFIGS / f"{name}.yaml" for name in ("base", "methods/bradley_terry_margin", "hardware/cpu"))
    axes = [part for file in files for part in ("-c", file)]
    stages = ["--data.train", rows, "--data.test", rows, "--data.held_out", 2]
    fit = [*axes, *stages, "--model.init_args.policy.name", tiny_model, "--run_dir", "run"]
    assert "forward and backward pass" in prefopt("plan", *fit)
    missing = prefopt.fails(
        "fit", *fit, "--model.init_args.objective.init_args.margin.init_args.column", "gap"
    )
    assert "MarginBradleyTerry needs the column 'gap'" in missing
    prefopt("fit", *fit, "--model.init_args.optimizer.init_args.lr", 0.01, "--trainer.max_epochs", 2)
    prefopt("test", "-c", "run/config.yaml", "--ckpt_path", "last")
    assert "test/chosen_logp" not in metrics_of("run", "test")
    prefopt("predict", "-c", "run/config.yaml", "--ckpt_path", "last", "--data.predict", rows)
    prefopt("report", "run")
    predicted = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    expected = [[one["reward"] for one in line["responses"]] for line in predicted]
    assert predicted[0]["responses"][0]["log_prob"] is None

    prefopt("export", "run/checkpoints/last.ckpt", "--out", "out")
    scorer = RewardScorer.load("out")
    torch.testing.assert_close(
        torch.tensor(scorer.rewards([to_row(record) for record in records], batch_size=3)),
        torch.tensor(expected),
        rtol=0,
        atol=1e-5,
    )
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained("out"),
        AutoTokenizer.from_pretrained("out"),
    )
    assert model.config.pad_token_id == tokenizer.pad_token_id != scorer.renderer.end_token_id
    for record, rewards in zip(records, expected, strict=True):
        encoded = scorer.renderer.encode(to_row(record))
        ids = [[*encoded.prompt_ids, *response] for response in encoded.response_ids]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch).logits.squeeze(-1)
        assert found.tolist() == pytest.approx(rewards, abs=1e-5)

"""Heads of preference models from the command line: fit, predict, new users and contexts, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pl_prefopt import functional
from pl_prefopt.cli.adapt import rows_as_trained
from pl_prefopt.data import Source
from pl_prefopt.data.formats import to_row
from pl_prefopt.modules import RewardModule, RewardScorer
from tests.method_files import CONFIGS
from tests.runs import pair_rows, write_rows


def trained(prefopt, tiny_model, method, rows, *further):
    files = (CONFIGS / "base.yaml", CONFIGS / "methods" / f"{method}.yaml", CONFIGS / "hardware" / "cpu.yaml")
    axes = [part for file in files for part in ("-c", file)]
    model = ["--model.init_args.policy.name", tiny_model, "--default_callbacks.Generations", "false"]
    prefopt("fit", *axes, "--data.train", rows, "--data.held_out", 2, *model, *further, "--run_dir", "run")


def predicted(prefopt, rows, checkpoint="last"):
    prefopt("predict", "-c", "run/config.yaml", "--ckpt_path", checkpoint, "--data.predict", rows)
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    found = [
        [response.get("outputs", [response["reward"]]) for response in line["responses"]] for line in lines
    ]
    return torch.tensor(found)


def test_users_are_trained_predicted_and_added(prefopt, tmp_path, tiny_model):
    rows = [{**row, "user": "ann" if number % 2 else "bob"} for number, row in enumerate(pair_rows(8))]
    known = write_rows(tmp_path / "rows.jsonl", rows)
    trained(prefopt, tiny_model, "maxmin_em", known, "--trainer.max_epochs", 2)
    outputs = predicted(prefopt, known)
    assert outputs.shape == (8, 2, 4), "two rewards, two log-weights"
    stranger = write_rows(tmp_path / "stranger.jsonl", [{**rows[0], "user": "eve"}])
    predict = ["predict", "-c", "run/config.yaml", "--ckpt_path"]
    said = prefopt.fails(*predict, "last", "--data.predict", stranger)
    expected = "expected one of the 2 users of the training rows (ann, bob) in the column 'user', got 'eve'"
    assert expected in said
    assert "add the user first with `prefopt adapt`" in said

    out = "run/checkpoints/eve.ckpt"
    adapt = ["adapt", "run", "--out", out]
    few = prefopt.fails(*adapt, stranger)
    assert "expected at least 2 pairs of the new user 'eve', got 1: give more pairs" in few
    assert "a new user, but 'bob' is known already" in prefopt.fails(*adapt, known)
    assert "--step is that of a router" in prefopt.fails(*adapt, known, "--step", 1)
    of_eve = [{**row, "user": "eve"} for row in rows]
    new = write_rows(tmp_path / "new.jsonl", of_eve)
    assert "user 'eve': group " in prefopt(*adapt, new)
    assert "to be a new file ending in .ckpt" in prefopt.fails(*adapt, new)
    added = predicted(prefopt, new, out)
    margins = outputs[:, 0, :2] - outputs[:, 1, :2]
    best = int(torch.nn.functional.logsigmoid(margins).sum(dim=0).argmax())
    torch.testing.assert_close(added[..., :2], outputs[..., :2])
    assert (added[..., 2 + best] == 0).all()
    prefopt("export", out, "--out", "out")
    scored = torch.stack(RewardScorer.load("out").outputs([to_row(row) for row in of_eve]))
    torch.testing.assert_close(scored, added, rtol=0, atol=1e-5)
    assert "optimiser states to resume from" in prefopt.fails(
        "fit", "-c", "run/config.yaml", "--ckpt_path", out
    )


def test_a_context_replaces_the_router(prefopt, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(6))
    settings = ["--model.init_args.reward_head.init_args.parts", 3, "--trainer.precision", "bf16-mixed"]
    trained(prefopt, tiny_model, "micro", rows, *settings)
    before = predicted(prefopt, rows)
    out = "run/checkpoints/context.ckpt"
    assert "whose step was not published: set --step" in prefopt.fails("adapt", "run", rows, "--out", out)
    prefopt("adapt", "run", rows, "--step", 0.5, "--out", out)
    margins = before[:, 0, :3] - before[:, 1, :3]
    expected = functional.context_weights(before[:, 0, 3:].double(), margins.double(), step=0.5)
    after = predicted(prefopt, rows, out)
    torch.testing.assert_close(after[..., :3], before[..., :3])
    # Other batches round otherwise in bfloat16, by how much depends on the processor.
    torch.testing.assert_close(after[..., 3:].double(), expected.expand(6, 2, 3), rtol=1e-3, atol=1e-3)
    loaded = RewardModule.load_from_checkpoint(out)
    assert loaded.reward_head.learned["context"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_rows_to_adapt_to_have_the_winner_of_the_run(tmp_path):
    rated = {"question": "Hi", "responses": ["a", "b"], "scores": [2, 1], "clear": [1, 4]}
    source = Source(path=write_rows(tmp_path / "rows.jsonl", [rated]))
    data = {"columns": {"prompt": "question"}, "aspects": {"clear": 2.0}}
    (row,) = rows_as_trained(data, source, {})
    assert row.scores == (1.0, 4.0)
    other = write_rows(
        tmp_path / "other.jsonl", [{"say" if k == "question" else k: v for k, v in rated.items()}]
    )
    (row,) = rows_as_trained({**data, "aspects": None}, Source(path=other), {"prompt": "say"})
    assert row.scores == (2.0, 1.0)

"""Heads of preference models from the command line: fit, predict, and users who weren't trained on."""

from __future__ import annotations

import json

from tests.method_files import CONFIGS
from tests.runs import pair_rows, write_rows


def test_users_are_trained_predicted_and_refused_where_unknown(prefopt, tmp_path, tiny_model):
    rows = [{**row, "user": "ann" if number % 2 else "bob"} for number, row in enumerate(pair_rows(8))]
    known = write_rows(tmp_path / "rows.jsonl", rows)
    files = (CONFIGS / "base.yaml", CONFIGS / "methods" / "maxmin_em.yaml", CONFIGS / "hardware" / "cpu.yaml")
    axes = [part for file in files for part in ("-c", file)]
    model = ["--model.init_args.policy.name", tiny_model, "--trainer.max_epochs", 2]
    prefopt("fit", *axes, "--data.train", known, "--data.held_out", 2, *model, "--run_dir", "run")
    predict = ["predict", "-c", "run/config.yaml", "--ckpt_path", "last"]
    prefopt(*predict, "--data.predict", known)
    with (tmp_path / "run" / "predictions.jsonl").open() as file:
        written = [json.loads(line) for line in file]
    outputs = [response["outputs"] for row in written for response in row.get("responses", [])]
    assert len(outputs) == 16
    assert all(len(each) == 4 and min(each) > -1e31 for each in outputs), "two rewards, two log-weights"
    stranger = write_rows(tmp_path / "stranger.jsonl", [{**rows[0], "user": "eve"}])
    said = prefopt.fails(*predict, "--data.predict", stranger)
    assert (
        "expected one of the 2 users of the training rows (ann, bob) in the column 'user', got 'eve'" in said
    )

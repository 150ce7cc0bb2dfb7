"""The configurations of one process take a step, on a CPU."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_two_processes import prefopt as in_processes
from tests.runs import NO_TEXTS, metrics_of, scored_rows, write_rows

CONFIGS = Path(__file__).parents[2] / "configs"


def axes(hardware):
    files = [
        CONFIGS / "base.yaml",
        CONFIGS / "methods" / "dpo.yaml",
        CONFIGS / "hardware" / f"{hardware}.yaml",
    ]
    return [part for file in files for part in ("-c", file)]


@pytest.mark.parametrize("hardware", ["full_cpu", "lora_1gpu", "qlora_1gpu", "full_1gpu"])
def test_one_process_takes_a_step(prefopt, tiny_model, tmp_path, hardware):
    if hardware == "qlora_1gpu":
        pytest.importorskip("bitsandbytes")
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(4))
    # Paged memory is a GPU's.
    words = [*axes(hardware), *NO_TEXTS, "--trainer.accelerator", "cpu"]
    words += ["--model.init_args.optimizer.class_path", "torch.optim.AdamW"]
    words += ["--data.train", rows, "--data.held_out", "1", "--model.init_args.policy.name", tiny_model]
    prefopt("fit", *words, "--run_dir", "run", "--trainer.accumulate_grad_batches", "1")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_what_4_bits_learned_goes_on_in_several_processes(prefopt, tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(4))
    words = [*NO_TEXTS, "--trainer.accelerator", "cpu", "--data.train", rows, "--data.val", rows]
    words += ["--trainer.accumulate_grad_batches", "1", "--trainer.log_every_n_steps", "1"]
    adam = '{"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}'
    policy = ["--model.init_args.policy.name", tiny_model, "--model.init_args.optimizer", adam]
    prefopt("fit", *axes("qlora_1gpu"), *words, *policy, "--run_dir", "qlora")
    learned = metrics_of("qlora")["val/margin"]
    assert learned > 0.05

    checkpoint = "qlora/checkpoints/last.ckpt"
    prefopt("export", checkpoint, "--out", "merged", "--merge", "true", "--dtype", "float32")
    weights = load_file("merged/model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float32}

    words += ["--trainer.devices", "2", "--trainer.strategy.init_args.data_parallel_size", "2"]
    words += ["--data.batch_size", "2", "--model.init_args.policy.name", "merged"]
    in_processes(tmp_path, "fit", *axes("fsdp2"), *words, "--run_dir", "split")
    # It is compared with the merged model, from which it has not moved yet.
    with Path("split/metrics.csv").open() as file:
        first = next(row["train/loss"] for row in csv.DictReader(file) if row["train/loss"])
    assert float(first) == pytest.approx(math.log(2), abs=1e-3)
    margin = metrics_of("split")["val/margin"]
    assert abs(margin) < learned / 10

"""The configurations of one process take a step, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import scored_rows, write_rows

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("hardware", ["full_cpu", "lora_1gpu", "qlora_1gpu", "full_1gpu"])
def test_one_process_takes_a_step(prefopt, tiny_model, tmp_path, hardware):
    if hardware == "qlora_1gpu":
        pytest.importorskip("bitsandbytes")
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(4))
    files = [
        CONFIGS / "base.yaml",
        CONFIGS / "methods" / "dpo.yaml",
        CONFIGS / "hardware" / f"{hardware}.yaml",
    ]
    words = [part for file in files for part in ("-c", file)]
    # Paged memory is a GPU's.
    words += ["--trainer.accelerator", "cpu", "--model.init_args.optimizer.class_path", "torch.optim.AdamW"]
    words += ["--data.train", rows, "--data.held_out", "1", "--model.init_args.policy.name", tiny_model]
    prefopt("fit", *words, "--run_dir", "run", "--trainer.accumulate_grad_batches", "1")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()

"""Runs whose processes torchrun or SLURM starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from pl_prefopt.cli.run_folder import choose_run_folder, keep_earlier_metrics, refuse_second_run
from pl_prefopt.errors import ConfigError
from tests.runs import metrics_of, scored_rows, write_rows

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "cluster"
ON_CPU = {
    "--trainer.accelerator": "cpu",
    "--trainer.devices": 1,
    "--trainer.precision": "32-true",
    "--trainer.strategy.init_args.data_parallel_size": 2,
    "--run_dir": "run",
}


def test_two_machines_that_torchrun_starts_split_one_model(tmp_path, prefopt, tiny_model):
    """Both are this machine, with one process each."""
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(6))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = ("base", "methods/dpo", "hardware/fsdp2_multinode")
    settings = {
        **ON_CPU,
        "--data.train": rows,
        "--data.val": rows,
        "--model.init_args.policy.name": tiny_model,
    }
    command = [SCRIPTS / "torchrun.sh", "fit"]
    command += [part for file in files for part in ("-c", ROOT / "configs" / f"{file}.yaml")]
    command += [str(part) for setting in settings.items() for part in setting]
    machines = {
        "NODES": "2",
        "GPUS": "1",
        "PORT": str(port),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **machines, "NODE": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    for machine in started:
        printed, _ = machine.communicate(timeout=900)
        assert machine.returncode == 0, printed
        assert "sync_dist" not in printed, "advice about what has been gathered already"
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (run / "checkpoints" / "last.ckpt").is_dir()
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["num_nodes"] == 2
    assert "val/margin" in metrics_of(run)

    prefopt("export", run / "checkpoints" / "last.ckpt", "--out", "exported")
    assert AutoModelForCausalLM.from_pretrained("exported").config.vocab_size > 300
    alone = {"--trainer.strategy": "auto", "--trainer.num_nodes": 1, "--ckpt_path": "last"}
    words = [str(part) for setting in alone.items() for part in setting]
    assert "of a run with sharded weights" in prefopt.fails("validate", "-c", run / "config.yaml", *words)


def test_the_slurm_script_hands_its_arguments_to_every_task(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python"}
    arguments = ["fit", "--model.init_args.policy.lora", "{r: 16, lora_alpha: 32}"]
    script = [SCRIPTS / "slurm.sh", *arguments]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["--kill-on-bad-exit=1", "python", "-m", "pl_prefopt", *arguments]


LAUNCHED = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "0"},
    "srun": {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_processes_of_a_launcher_need_a_folder_and_only_the_first_looks_after_it(
    tmp_path, monkeypatch, launcher
):
    monkeypatch.delenv("PREFOPT_RUN_DIR", raising=False)
    for name, value in LAUNCHED[launcher].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--run_dir"):
        choose_run_folder(asked=None, ckpt_path=None, method="dpo")
    assert choose_run_folder(asked=str(tmp_path), ckpt_path=None, method="dpo") == tmp_path
    # A folder that is asked for is that of all processes, whatever an earlier run of this one chose.
    assert choose_run_folder(asked="another", ckpt_path=None, method="dpo") == Path("another")
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.csv").touch()
    refuse_second_run(tmp_path, None)  # the first process wrote it just now
    keep_earlier_metrics(tmp_path)
    assert (tmp_path / "metrics.csv").exists()

    monkeypatch.setenv({"torchrun": "RANK", "srun": "SLURM_PROCID"}[launcher], "0")
    with pytest.raises(ConfigError, match="already contains a run"):
        refuse_second_run(tmp_path, None)
    keep_earlier_metrics(tmp_path)
    assert (tmp_path / "metrics.1.csv").exists()

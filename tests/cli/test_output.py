"""The whole output of the commands: ours, and of the libraries' messages those that are of use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.cli.test_commands import axes
from tests.runs import NO_TEXTS, scored_rows, write_rows

ROOT = Path(__file__).parents[2]

# Notices as they come on other machines, beside warnings that must not get lost.
NOTICES = """
import logging
import warnings

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


class Notices(Callback):
    def on_fit_start(self, trainer, module):
        kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
        kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module")
        kernels.warning("a wrong kernel")
        rank_zero_info("HPU available: False, using: 0 HPUs")
        rank_zero_info("HPU available: True, using: 8 HPUs")
        rank_zero_warn("of the user:\\n  two lines")
        warnings.warn("of every rank")
"""
# Ours goes to stdout; what libraries log and warn of goes to stderr, where this is of use.
LIGHTNINGS = (
    r"GPU available: False, used: False|`Trainer\.fit` stopped: `max_epochs=1` reached\.|"
    r"(Restoring states|Loaded model weights) from the checkpoint.*|"
    r"Initializing distributed: GLOBAL_RANK: [01], MEMBER: [12]/2|"
    r"LlamaForCausalLM is run on prefix trees, .* a probe found the log-probs of single rows, .*|"
    r"Warning: The number of training batches \(1\) is smaller .* \(fit_loop\.py:\d+\)"
)
NOTICED = (
    r"a wrong kernel|HPU available: True, using: 8 HPUs|"
    r"Warning: of the user: two lines \(notices\.py:\d+\)|Warning: of every rank \(notices\.py:\d+\)"
)
NEVER_PRINTED = ("FLOPs", "train mode", "Seed set", "TPU", "Loading weights", "Writing model shards")


def output(folder: Path, *words: object) -> tuple[str, str]:
    """What a process and its ranks print: to stdout and to stderr."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**environment, "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def check_log(logged: str, expected: str) -> None:
    """Show the lines that nobody should see."""
    lines = [line for line in logged.splitlines() if line.strip() and not re.fullmatch(expected, line)]
    assert not lines, "\n".join(lines)


def test_a_run_on_two_ranks_shows_no_notices_and_loses_no_warning(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    (tmp_path / "notices.py").write_text(NOTICES)
    settings = [*axes(), *NO_TEXTS, "--data.train", rows, "--data.held_out", "4"]
    settings += ["--model.init_args.policy.name", tiny_model]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.callbacks+", "notices.Notices"]
    printed, logged = output(tmp_path, "-m", "pl_prefopt", "fit", *settings, *two, "--run_dir", "run")
    check_log(logged, f"{LIGHTNINGS}|{NOTICED}")
    assert not any(words in printed for words in NEVER_PRINTED), printed
    assert printed.count("parameters are trained") == 1
    for words, count in {
        "a wrong kernel": 2,
        "HPU available: True": 1,
        "of the user: two lines": 1,
        "of every rank": 2,
    }.items():
        assert logged.count(words) == count, logged


BARS = """
from pl_prefopt.cli import main, log_filters
log_filters.install_log_filters()
from huggingface_hub.utils import tqdm as of_the_hub
from transformers.utils.logging import tqdm
for made in (tqdm, of_the_hub):
    for _ in made(range(3), desc="Loading weights"):
        pass
"""


def test_bars_of_libraries_do_not_reach_a_log(tmp_path):
    assert output(tmp_path, "-c", BARS) == ("", "")


def test_the_demo_starts_with_what_it_does_and_how_long_it_takes():
    # Under another make this one would name the folders that it enters.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    dry_run = ["make", "--dry-run", "demo"]
    made = subprocess.run(dry_run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert made.stdout.startswith('echo "The demo trains')
    assert "about four minutes" in made.stdout.split("venv")[0]

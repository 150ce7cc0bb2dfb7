"""What metrics and logging take of a training step: DPO with LoRA on HH-RLHF pairs.

    python scripts/benchmarks/metric_overhead.py [--steps 6] [--batch-size 4]

Times the calls that exist for people's eyes alone (the metrics' updates, what is logged at a step's end, the
dashboards' callbacks) within whole steps, and prints their share. The first step, which pays for what happens
once, is left out; the metrics are logged at every `--log-every`-th step. On a GPU a call costs what it takes
to launch it, unless it waits for the device: with `--waits` PyTorch names each place that does.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pl_prefopt.callbacks import ProgressBar, ReferenceEnsemble, Throughput
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


class Stopwatch:
    """Adds up, by name, the time within the functions that it is put around."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, owner: Any, method: str, name: str) -> None:
        """Time ``owner.method`` from now on."""
        setattr(owner, method, self._timed(getattr(owner, method), name))

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


class Steps(Callback):
    """Times whole steps; begins anew after the first."""

    def __init__(self, stopwatch: Stopwatch, *, waits: bool) -> None:
        self.stopwatch, self.waits = stopwatch, waits
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put the stopwatch around what serves the eyes."""
        around = self.stopwatch.around
        around(pl_module.suites["train_stage"], "update", "metrics: update")
        around(pl_module, "on_train_batch_end", "metrics: compute and log")
        for callback in trainer.callbacks:
            if isinstance(callback, Throughput | ProgressBar):
                around(callback, "on_train_batch_end", type(callback).__name__)
        for method in ("on_batch_end", "update_train_step_metrics"):
            around(trainer._logger_connector, method, "Lightning's logging")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Forget the first step."""
        if batch_idx == 1:
            self.stopwatch.seconds.clear()
            self.start = time.perf_counter()
            if self.waits:
                warnings.filterwarnings("default", message=".*synchroniz")
                torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the shares."""
        if self.waits:
            torch.cuda.set_sync_debug_mode("default")
        whole, steps = time.perf_counter() - self.start, trainer.global_step - 1
        parts = {**self.stopwatch.seconds, "all of it": sum(self.stopwatch.seconds.values()), "a step": whole}
        for name, seconds in parts.items():
            print(f"{name:28} {1000 * seconds / steps:9.2f} ms a step {seconds / whole:8.3%}")


def main() -> None:
    """Train a few steps and print what they spent on metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="../shared/data/hh_harmless.jsonl.gz")
    parser.add_argument("--steps", type=int, default=6, help="measured, after one that is not")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--waits", action="store_true", help="on a GPU: warn where a step waits for it")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        fit(given, Path(folder))


def fit(given: argparse.Namespace, folder: Path) -> None:
    """Run the trainer."""
    module = DPOModule(
        PolicySpec(name=given.model, lora=LORA),
        DPO(),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-5),
    )
    datamodule = PreferenceDataModule(
        given.data,
        tokenizer=given.model,
        batch_size=given.batch_size,
        max_rows=(given.steps + 1) * given.batch_size,
        max_prompt_length=512,
        max_response_length=256,
        on_bad_row="skip",
        cache_dir=str(folder / "cache"),
    )
    trainer = Trainer(
        devices=1,
        max_steps=given.steps + 1,
        max_epochs=-1,
        gradient_clip_val=1.0,
        log_every_n_steps=given.log_every,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=[TensorBoardLogger(folder, name=""), CSVLogger(folder, name="csv")],
        callbacks=[
            ReferenceEnsemble([AdapterOff()]),
            Throughput(),
            ProgressBar(),
            Steps(Stopwatch(), waits=given.waits),
        ],
    )
    trainer.fit(module, datamodule=datamodule)


if __name__ == "__main__":
    main()

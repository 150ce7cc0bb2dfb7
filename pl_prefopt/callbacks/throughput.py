"""Training throughput."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.types import PLAIN, PreferenceBatch


class Throughput(Callback):
    """Logs ``train/tokens_per_second``: tokens of the rows trained on, over the steps since the last time.

    A prompt counts once, padding and second views don't count, and ranks are summed. The time excludes
    validation only. No step waits for the device: batches keep their lengths on the CPU,
    and the clock is read only where the training metrics are logged and around a validation (Lightning's
    ``ThroughputMonitor`` waits for the GPU at every step).
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._since = 0.0
        self._logged_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._logged_at = trainer.global_step
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log at the steps at which training metrics are logged."""
        tree = batch.trees[PLAIN]
        self._tokens += sum(tree.prompt_lengths) + sum(tree.response_lengths)
        every, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_at:
            self._logged_at = step
            self._stop(pl_module.device)
            rate = torch.tensor(self._tokens / self._seconds, device=pl_module.device)
            total: Any = trainer.strategy.reduce(rate, reduce_op="sum")
            pl_module.log("train/tokens_per_second", total.cpu(), prog_bar=True, batch_size=1)
            self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the clock."""
        self._since = time.perf_counter()

    def _start(self) -> None:
        self._tokens, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def _stop(self, device: torch.device) -> None:
        # A step only queues work on a GPU. The clock runs from one synchronisation to the next, so it covers
        # the work of exactly the steps counted, however far the CPU ran ahead in between.
        torch.get_device_module(device).synchronize()
        self._seconds += time.perf_counter() - self._since

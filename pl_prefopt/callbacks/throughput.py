"""How fast training goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.types import PLAIN, PreferenceBatch


class Throughput(Callback):
    """Logs ``train/tokens_per_second``: tokens of the rows trained on, over the steps since the last time.

    A prompt counts once, padding and second views not at all, and all processes are added up. The time is
    that of everything but validation. Tokens are counted on the device, which is asked for their number
    only when the training metrics are logged, so that it never waits in between (Lightning's
    ``ThroughputMonitor`` waits for the GPU at every step).
    """

    def __init__(self) -> None:
        self._tokens: torch.Tensor | int = 0
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
        """Count the batch, and log where training metrics are."""
        tree = batch.trees[PLAIN]
        self._tokens = self._tokens + tree.prompt_mask.sum() + tree.response_mask.sum()
        every, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_at:
            self._logged_at = step
            self._stop()
            rate = torch.tensor(float(self._tokens) / self._seconds, device=pl_module.device)
            total: Any = trainer.strategy.reduce(rate, reduce_op="sum")
            pl_module.log("train/tokens_per_second", total.cpu(), prog_bar=True, batch_size=1)
            self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._since = time.perf_counter()

    def _start(self) -> None:
        self._tokens, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def _stop(self) -> None:
        self._tokens = int(self._tokens)  # waits until the device has done what was asked of it
        self._seconds += time.perf_counter() - self._since

"""The distribution of an evaluation's reward margins."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.callbacks.publishing import publish_histogram
from pl_prefopt.metrics import Margins
from pl_prefopt.types import PreferenceBatch


class MarginHistogram(Callback):
    """Logs a histogram of all pairs' reward margins at each validation and test: ``val/margins``.

    It shows the pairs of all ranks. Rows without pairs contribute none.
    """

    def __init__(self) -> None:
        self._margins = Margins()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty state on the module's device."""
        self._margins = Margins().to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's pairs."""
        _, outcome = outputs
        self._margins.update(outcome.reward, batch.scores, batch.present)

    on_test_start, on_test_batch_end = on_validation_start, on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation's histogram."""
        if not trainer.sanity_checking:
            self._publish(trainer, "val/margins")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the test's histogram."""
        self._publish(trainer, "test/margins")

    def _publish(self, trainer: Trainer, name: str) -> None:
        # On every rank: `compute` is a collective call. torchmetrics returns a scalar for a single value.
        margins = self._margins.compute().reshape(-1).cpu().numpy()
        self._margins.reset()
        if trainer.is_global_zero and len(margins):
            for logger in trainer.loggers:
                publish_histogram(logger, name, margins, trainer.global_step)

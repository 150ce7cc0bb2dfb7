"""The progress bar of a training run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

_SHORT = {
    "train/loss": "loss",
    "train/accuracy": "accuracy",
    "train/margin": "margin",
    "train/tokens_per_second": "tokens/s",
}


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with short names: loss, accuracy, margin, tokens/s.

    The numbers are those of the last time that training metrics were logged. Where the output is no
    terminal, it is printed once, at the end.

    Args:
        refresh_rate: times a second that the bar is drawn anew; 0 switches it off.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate, theme=RichProgressBarTheme(metrics_format=".4g"))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        found = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        first = {short: found.pop(name) for name, short in _SHORT.items() if name in found}
        return {**first, **found}

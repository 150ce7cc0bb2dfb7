"""The last evaluation's numbers as a file."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.files import replacing


class MetricsFile(Callback):
    """Writes the metrics of each validation and test to ``metrics.json``, by name.

    A name written before, by another command in the same folder, stays unless it is measured anew.

    Args:
        folder: where the file goes.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "metrics.json"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what begins with ``val/``."""
        if not trainer.sanity_checking:
            self._write(trainer, "val/")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what begins with ``test/``."""
        self._write(trainer, "test/")

    def _write(self, trainer: Trainer, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        metrics = self._earlier()
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= {name: value for name, value in measured.items() if name.startswith(prefix)}
        with replacing(self.path) as draft:
            draft.write_text(json.dumps(dict(sorted(metrics.items())), indent=2) + "\n")

    def _earlier(self) -> dict[str, float]:
        """Return what is in the file; one that is damaged is set aside, since a run needn't end for it."""
        if not self.path.is_file():
            return {}
        try:
            return dict(json.loads(self.path.read_text()))
        except (ValueError, TypeError):
            self.path.replace(self.path.with_suffix(".damaged.json"))
            return {}

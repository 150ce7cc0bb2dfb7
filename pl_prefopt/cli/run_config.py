"""Writing the run's ``config.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from pl_prefopt.files import atomic_write
from pl_prefopt.saved_settings import FILE_NAME, portable


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` atomically before the first step; later commands start from it.

    By then data, models and references are set up and a checkpoint has been accepted, so that a failed start
    neither leaves a file nor overwrites the one of the run.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: Lightning's callback would write here already."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings of a run."""
        self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings of an evaluation."""
        if trainer.state.fn != "fit":
            self._write(trainer)

    on_test_start = on_predict_start = on_validation_start

    def _write(self, trainer: Trainer) -> None:
        """Write the file once, on rank 0."""
        if self.already_saved:
            return
        if trainer.is_global_zero:
            folder = Path(str(trainer.log_dir))
            settings: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
            with atomic_write(folder / FILE_NAME) as draft:
                text = yaml.safe_dump(portable(settings, folder), sort_keys=False, allow_unicode=True)
                draft.write_text(text, encoding="utf-8")
        self.already_saved = True

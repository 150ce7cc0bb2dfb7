"""The run's settings as a file."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from pl_prefopt.files import replacing


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` beside the logs, whole or not at all: later commands start from it.

    Where a run goes on from a checkpoint, this waits until that was accepted: settings that it doesn't fit
    would take the place of those that it was made with.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it before anything else, unless a run is to go on."""
        if stage != "fit" or getattr(pl_module, "restored_from", None) is None:
            self._write(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it if that had to wait."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Write it once, in the first process."""
        if self.already_saved:
            return
        folder = Path(str(trainer.log_dir))  # which every process has to ask for
        if trainer.is_global_zero:
            with replacing(folder / self.config_filename) as draft:
                draft.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
        self.already_saved = True

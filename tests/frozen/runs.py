"""The losses of short seeded runs of every method, on a tiny model in float64.

`python -m tests.frozen.runs` writes the file that `test_runs.py` compares with. A number in it changes only
in a commit that names the fault it corrects and shows the right value independently.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.references import InitialPolicy
from tests.frozen.numbers import METHODS, NAMES, built
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows
from tests.support import save_tiny_model

FILE = Path(__file__).with_name("runs.json")
STEPS = 4


class Losses(Callback):
    """Keeps each step's loss."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["loss"].dtype == torch.float64
        self.found.append(outputs["loss"].item())


def sgd(weights: Any) -> torch.optim.Optimizer:
    # Unlike Adam's, its steps follow the gradient's size, so that rounding stays rounding.
    return torch.optim.SGD(weights, lr=0.02, momentum=0.9)


def trained(name: str, folder: Path, model: Path) -> list[float]:
    """Train by ``configs/methods/<name>.yaml`` for a few steps; return the losses."""
    settings = yaml.safe_load((METHODS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]
    room, _, kind = settings["class_path"].rpartition(".")
    objective = built(name).train()
    if name == "kto":
        objective.desirable_above = 4.0
    torch.manual_seed(0)
    module = getattr(importlib.import_module(room), kind)(lora_spec(model), objective, optimizer=sgd)
    references = [InitialPolicy() for _ in range(objective.needs.max_references or 2)]
    if objective.needs.min_references == 0:
        references = []
    losses = Losses()
    trainer = make_trainer(
        folder,
        ReferenceEnsemble(references),
        losses,
        precision="64-true",
        max_steps=STEPS,
        limit_val_batches=0,
    )
    trainer.fit(module, make_datamodule(folder, scored_rows(2 * STEPS)))
    return losses.found


def main() -> None:
    """Write the file, one line per method."""
    lines = []
    with TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "model")
        for name in NAMES:
            folder = Path(scratch) / name
            folder.mkdir()
            lines.append(f"  {json.dumps(name)}: {json.dumps(trained(name, folder, model))}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

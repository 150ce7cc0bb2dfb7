"""A run whose optimiser starts with the state of another run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.errors import ConfigError


class OptimizerState(Callback):
    """Gives the optimiser the state of a checkpoint when training begins; a resumed run keeps its own.

    Only what the optimiser remembers of each parameter is taken, such as moments and step counts. Learning
    rate and other settings are the run's own.

    Args:
        checkpoint: a checkpoint of one file, of a run with the same trained parameters.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the state.

        Raises:
            ConfigError: if the checkpoint isn't one file, or is of other parameters.
        """
        if trainer.global_step:
            return
        if not Path(self.checkpoint).is_file():
            raise ConfigError(
                f"expected a checkpoint of one file with an optimiser's state, got {self.checkpoint}: set "
                "`fit.keep_optimizer` to false for sharded checkpoints."
            )
        held = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["optimizer_states"]
        optimizers = trainer.optimizers
        if len(held) != len(optimizers):
            raise self._unfit()
        for optimizer, state in zip(optimizers, held, strict=True):
            _check(optimizer, state["state"], self._unfit())
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})

    def _unfit(self) -> ConfigError:
        return ConfigError(
            f"the optimiser's state in {self.checkpoint} is of other parameters: train all rounds with the "
            "same adapter, or set `fit.keep_optimizer` to false."
        )


def _check(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]], unfit: ConfigError) -> None:
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    if set(state) != set(range(len(parameters))):
        raise unfit
    for place, parameter in enumerate(parameters):
        tensors = [value for value in state[place].values() if isinstance(value, torch.Tensor)]
        if any(value.dim() and value.shape != parameter.shape for value in tensors):
            raise unfit

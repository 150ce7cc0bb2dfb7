"""What an objective has gathered over a run, such as BCO's mean reward, in checkpoints."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from pl_prefopt.data import PreferenceDataModule, batches_since_step, datamodule_of
from pl_prefopt.objectives import Objective

_KEY = "pl_prefopt_objective_state"


class ObjectiveState:
    """Saves an objective's state, and that before the batches that a resumed run repeats.

    Args:
        objective: the objective.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._before_step = self.now()

    def now(self) -> dict[str, Tensor]:
        """Return a copy of the state, empty for most objectives."""
        return {name: value.clone() for name, value in self._objective.state_dict().items()}

    def note_step(self, trainer: Trainer) -> None:
        """Remember the state if the next batch is the first of an optimiser step."""
        if not batches_since_step(trainer):
            self._before_step = self.now()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Return to a state of ``now``."""
        self._objective.load_state_dict(state)

    def save(self, checkpoint: dict[str, Any], trainer: Trainer) -> None:
        """Write the state into a checkpoint."""
        repeated = batches_since_step(trainer) and isinstance(datamodule_of(trainer), PreferenceDataModule)
        if state := self._before_step if repeated else self.now():
            checkpoint[_KEY] = state

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Read the state from a checkpoint that has one."""
        if _KEY in checkpoint:
            self.restore(checkpoint[_KEY])

"""MPPO: objectives on the mean likelihood of all responses to a prompt."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import OptimizerCallable

from pl_prefopt.modules.base import PreferenceModule, adamw
from pl_prefopt.modules.schedule import Schedule
from pl_prefopt.objectives import MPPOObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.scoring import LayoutName

_DRAWS = "pl_prefopt_draws"


class MPPOModule(PreferenceModule):
    """Trains on the mean likelihoods of all responses: MPPO's eight variants. References, if any, only watch.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        optimizer: makes the optimiser from the trainable parameters.
        schedule: the learning rate's course.
        layout: how a prompt and its responses are laid out in the model's input.
    """

    objective: MPPOObjective

    def __init__(
        self,
        policy: PolicySpec,
        objective: MPPOObjective,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
        layout: LayoutName = "auto",
    ) -> None:
        super().__init__(policy, objective, optimizer, schedule, layout)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the random draws are, beside what every method notes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_DRAWS] = self.objective.draws.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random draws where the checkpoint was made."""
        super().on_load_checkpoint(checkpoint)
        self.objective.draws.state = checkpoint[_DRAWS]

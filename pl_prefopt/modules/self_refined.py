"""Sr-DPO and Sr-IPO."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable

from pl_prefopt.modules.base import PreferenceModule, adamw
from pl_prefopt.modules.schedule import Schedule
from pl_prefopt.objectives import SelfRefinedObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.scoring import LayoutName


class SrModule(PreferenceModule):
    """Scores each pair under two prompts, one of which asks for quality: Sr-DPO, Sr-IPO.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        optimizer: makes the optimiser from the trainable parameters.
        schedule: the learning rate's course.
        layout: how a prompt and its responses are laid out in the model's input.
    """

    def __init__(
        self,
        policy: PolicySpec,
        objective: SelfRefinedObjective,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
        layout: LayoutName = "auto",
    ) -> None:
        super().__init__(policy, objective, optimizer, schedule, layout)

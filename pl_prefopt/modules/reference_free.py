"""Objectives that look at the policy alone."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable

from pl_prefopt.modules.base import PreferenceModule, adamw
from pl_prefopt.modules.schedule import Schedule
from pl_prefopt.objectives import ReferenceFreeObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.scoring import LayoutName


class ReferenceFreeModule(PreferenceModule):
    """Trains without a reference: SimPO, ORPO. References, if any, only measure the distance to them.

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
        objective: ReferenceFreeObjective,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
        layout: LayoutName = "auto",
    ) -> None:
        super().__init__(policy, objective, optimizer, schedule, layout)

"""Objectives that look at the policy alone."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import ReferenceFreeObjective
from pl_prefopt.policies import PolicySpec


class ReferenceFreeModule(PreferenceModule):
    """Trains without a reference: SimPO, ORPO. References, if any, only measure the distance to them.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    def __init__(self, policy: PolicySpec, objective: ReferenceFreeObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

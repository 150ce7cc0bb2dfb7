"""MRPO and Multi-DPO."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import MultiReferenceObjective
from pl_prefopt.policies import PolicySpec


class MRPOModule(PreferenceModule):
    """Compares the policy with any number of references: MRPO, Multi-DPO.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    def __init__(self, policy: PolicySpec, objective: MultiReferenceObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

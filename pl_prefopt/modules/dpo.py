"""DPO and its relatives."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import ReferenceObjective
from pl_prefopt.policies import PolicySpec


class DPOModule(PreferenceModule):
    """Compares the policy with one reference: DPO, IPO, hinge, rDPO, DPOP, f-DPO, KTO.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    def __init__(self, policy: PolicySpec, objective: ReferenceObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

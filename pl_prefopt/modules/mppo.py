"""MPPO: objectives on the mean likelihood of all responses to a prompt."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import MPPOObjective
from pl_prefopt.policies import PolicySpec


class MPPOModule(PreferenceModule):
    """Trains on the mean likelihoods of all responses: MPPO's eight variants. References, if any, only watch.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    def __init__(self, policy: PolicySpec, objective: MPPOObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

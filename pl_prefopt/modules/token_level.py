"""TDPO, TGDPO and LD-DPO."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import TokenLevelObjective
from pl_prefopt.policies import PolicySpec


class TokenLevelModule(PreferenceModule):
    """Compares the policy with its references token by token: TDPO, TGDPO, LD-DPO.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    def __init__(self, policy: PolicySpec, objective: TokenLevelObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

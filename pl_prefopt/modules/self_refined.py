"""Sr-DPO and Sr-IPO."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import SelfRefinedObjective
from pl_prefopt.policies import PolicySpec


class SrModule(PreferenceModule):
    """Scores each pair under two prompts, one of which asks for quality: Sr-DPO, Sr-IPO.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    def __init__(self, policy: PolicySpec, objective: SelfRefinedObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

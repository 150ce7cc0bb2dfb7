"""MPPO: objectives on the mean likelihood of all responses to a prompt."""

from __future__ import annotations

from typing import Any

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import MPPOObjective
from pl_prefopt.policies import PolicySpec

_DRAWS = "pl_prefopt_draws"


class MPPOModule(PreferenceModule):
    """Trains on the mean likelihoods of all responses: MPPO's eight variants. References, if any, only watch.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        options: the same for all families, see ``PreferenceModule``.
    """

    objective: MPPOObjective

    def __init__(self, policy: PolicySpec, objective: MPPOObjective, **options: Any) -> None:
        super().__init__(policy, objective, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the random draws are, beside what every method notes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_DRAWS] = self.objective.draws.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random draws where the checkpoint was made."""
        super().on_load_checkpoint(checkpoint)
        self.objective.draws.state = checkpoint[_DRAWS]

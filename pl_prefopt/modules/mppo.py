"""MPPO: objectives on the mean likelihood of all responses to a prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pl_prefopt.data import batches_since_step
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.objectives import MPPOObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.types import PreferenceBatch

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
        self._draws_at_step: Tensor | None = None

    def on_train_batch_start(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Remember where the random draws are as an optimiser step begins; see the base class."""
        super().on_train_batch_start(batch, batch_idx)
        if batches_since_step(self.trainer) == 0:
            self._draws_at_step = self.objective.draws.state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the random draws are, beside what every method notes."""
        super().on_save_checkpoint(checkpoint)
        unfinished = batches_since_step(self.trainer) > 0
        checkpoint[_DRAWS] = self._draws_at_step if unfinished else self.objective.draws.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random draws where the checkpoint was made."""
        super().on_load_checkpoint(checkpoint)
        self.objective.draws.state = checkpoint[_DRAWS]

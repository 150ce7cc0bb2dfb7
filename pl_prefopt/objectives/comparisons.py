"""What offsets, weights and terms see of a batch: its pairs and their rewards."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pl_prefopt.objectives.scores import Rewards, Score
from pl_prefopt.types import ScoredBatch


class Comparisons:
    """The pairs of a batch and their rewards, on the rows as they are and on second views.

    Attributes:
        batch: log-probs, 0 at absent responses.
        pairs: bool [B, R, R], winner by row and loser by column.
        rewards: r_w and r_l of each pair, with gradient.
    """

    def __init__(self, batch: ScoredBatch, pairs: Tensor, score: Score) -> None:
        self.batch, self.pairs, self._score = batch, pairs, score
        self.rewards = score(batch, batch.present, pairs)
        self._on_views: dict[str, Rewards] = {}

    @property
    def margins(self) -> Tensor:
        """r_w − r_l, [B, R, R], with gradient."""
        return self.rewards.chosen - self.rewards.rejected

    def on_view(self, name: str) -> Rewards:
        """Return the rewards of the same pairs on a second view, computed once and without gradient."""
        if name not in self._on_views:
            self._on_views[name] = self._score(self.batch.views[name], self.batch.present, self.pairs)
        return self._on_views[name]

    @property
    def view_rewards(self) -> Mapping[str, Tensor]:
        """The rewards of responses, [B, R], on each view that was asked for."""
        return {name: rewards.response.detach() for name, rewards in self._on_views.items()}

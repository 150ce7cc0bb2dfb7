"""How well margins of the reward follow differences of the grades: three correlations.

Counted are all pairs of a prompt's responses with different scores, the better one first, on graded rows
only: a bare order of chosen over rejected has no differences to follow. The measure of Sr-DPO's study,
arXiv 2405.21040.
"""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from pl_prefopt.metrics.bootstrap import kendall
from pl_prefopt.metrics.pairs import winner_minus_loser
from pl_prefopt.metrics.states import Correlation
from pl_prefopt.pairing import ALL_PAIRS


class GradeCorrelation(Correlation):
    """The base of the three: it collects margins of the reward and differences of the grades."""

    def update(self, reward: Tensor, scores: Tensor, present: Tensor, graded: Tensor) -> None:
        """Count a batch: ``reward``, ``scores`` and ``present`` [B, R], ``graded`` [B]."""
        wins = ALL_PAIRS(scores, present) & graded[:, None, None]
        self.add(winner_minus_loser(reward.float()), winner_minus_loser(scores.float()), wins)


class GradePearson(GradeCorrelation):
    """Pearson's r of reward margin and grade difference."""

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Pearson's r."""
        return pearson_corrcoef(first, second)


class GradeSpearman(GradeCorrelation):
    """Spearman's ρ of reward margin and grade difference."""

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Spearman's ρ."""
        return spearman_corrcoef(first, second)


class GradeKendall(GradeCorrelation):
    """Kendall's τ-b of reward margin and grade difference, computed on the CPU."""

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Kendall's τ-b."""
        return first.new_tensor(kendall(first.cpu().numpy(), second.cpu().numpy()))

"""Correlations of reward margins with score differences.

They count all pairs of a prompt's responses with different scores, the better one first, on graded rows only:
a plain order of chosen over rejected has no meaningful differences. Used in Sr-DPO's study, arXiv 2405.21040.
"""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from pl_prefopt.metrics.bootstrap import kendall
from pl_prefopt.metrics.pairs import winner_minus_loser
from pl_prefopt.metrics.states import Correlation, all_present
from pl_prefopt.pairing import ALL_PAIRS


class GradeCorrelation(Correlation):
    """The base class of the three: it collects reward margins and score differences."""

    def update(
        self, reward: Tensor, scores: Tensor, present: Tensor | None = None, graded: Tensor | None = None
    ) -> None:
        """Count a batch.

        Args:
            reward: [B, R], of R responses to each of B prompts.
            scores: [B, R], the grades, NaN where unknown.
            present: bool [B, R], false at padding; all are present by default.
            graded: bool [B], whether differences of a row's scores are meaningful; true by default.
        """
        wins = ALL_PAIRS(scores, all_present(scores, present))
        if graded is not None:
            wins = wins & graded[:, None, None]
        self.add(winner_minus_loser(reward.float()), winner_minus_loser(scores.float()), wins)


class GradePearson(GradeCorrelation):
    """Pearson's r of reward margin and grade difference.

    Examples:
        Pairs of three prompts, with margins 1, 3, 2 and grade differences 1, 2, 3:

        >>> import torch
        >>> metric = GradePearson()
        >>> metric.update(
        ...     reward=torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]]),
        ...     scores=torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]),
        ... )
        >>> metric.compute()
        tensor(0.5000)
    """

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Pearson's r."""
        return pearson_corrcoef(first, second)


class GradeSpearman(GradeCorrelation):
    """Spearman's ρ of reward margin and grade difference.

    Examples:
        Margins 1, 30, 2 and grade differences 1, 2, 3 have the ranks 1, 3, 2 and 1, 2, 3:

        >>> import torch
        >>> metric = GradeSpearman()
        >>> metric.update(
        ...     reward=torch.tensor([[1.0, 0.0], [30.0, 0.0], [2.0, 0.0]]),
        ...     scores=torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]),
        ... )
        >>> metric.compute()
        tensor(0.5000)
    """

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Spearman's ρ."""
        return spearman_corrcoef(first, second)


class GradeKendall(GradeCorrelation):
    """Kendall's τ-b of reward margin and grade difference, computed on the CPU.

    Examples:
        Margins 1, 30, 2 and grade differences 1, 2, 3: two of three pairs of pairs agree, τ = (2 − 1)/3.

        >>> import torch
        >>> metric = GradeKendall()
        >>> metric.update(
        ...     reward=torch.tensor([[1.0, 0.0], [30.0, 0.0], [2.0, 0.0]]),
        ...     scores=torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]),
        ... )
        >>> metric.compute()
        tensor(0.3333)
    """

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Kendall's τ-b."""
        return first.new_tensor(kendall(first.cpu().numpy(), second.cpu().numpy()))

"""Metrics over all pairs of a prompt's responses whose scores differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from pl_prefopt.metrics.states import Mean, PreferenceMetric, Share, all_present, keep
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.types import ResponseLogProbs


def winner_minus_loser(values: Tensor) -> Tensor:
    """Return [B, R, R] differences of ``values`` [B, R]: at [b, i, j] that of i, the winner, over j."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def pairs_of(scores: Tensor, present: Tensor | None) -> Tensor:
    """Return bool [B, R, R], all pairs of responses with different known scores, winner by row."""
    return ALL_PAIRS(scores, all_present(scores, present))


def log_ratio(policy: ResponseLogProbs, reference: Tensor) -> Tensor:
    """Return float32 [B, R]: log π_θ(y|x) − log π_ref(y|x)."""
    return policy.sum.float() - reference.float()


class PreferenceAccuracy(Share):
    """The share of pairs in which the better response has the higher reward; ties count as 0.5.

    A policy that equals its reference gives every response the reward 0 and so reads 0.5, which is
    chance. (TRL counts ties as wrong and reads 0 there.)

    Examples:
        Of three responses, best first: the first beats the third, ties with the second, which loses:

        >>> metric = PreferenceAccuracy()
        >>> metric.update(reward=torch.tensor([[1.0, 1.0, 0.5]]), scores=torch.tensor([[3.0, 1.0, 2.0]]))
        >>> metric.compute()  # (0.5 + 1 + 0) / 3
        tensor(0.5000)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(reward), pairs_of(scores, present))


class Margin(Mean):
    """The mean over pairs of the better response's reward minus the worse one's.

    Examples:
        >>> metric = Margin()
        >>> metric.update(reward=torch.tensor([[1.0, 4.0, 0.0]]), scores=torch.tensor([[3.0, 2.0, 1.0]]))
        >>> metric.compute()  # (-3 + 1 + 4) / 3
        tensor(0.6667)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(reward.float()), pairs_of(scores, present))


class Margins(PreferenceMetric):
    """All pairs' margins, the better response's reward minus the worse one's: what a histogram shows.

    Examples:
        >>> metric = Margins()
        >>> metric.update(reward=torch.tensor([[1.0, 4.0, 0.0]]), scores=torch.tensor([[3.0, 2.0, 1.0]]))
        >>> metric.compute()
        tensor([-3.,  1.,  4.])
    """

    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        wins = pairs_of(scores, present)
        # NaN marks entries that are not pairs, removed in `compute`: selecting here would sync the GPU.
        keep(self.values, torch.where(wins, winner_minus_loser(reward.float()), torch.nan).flatten())

    def compute(self) -> Tensor:
        """Return float32 [pairs] without NaN, in no particular order."""
        if isinstance(self.values, list) and not self.values:
            return torch.zeros(0, device=self.device)
        values = dim_zero_cat(self.values)
        return values[values.isfinite()]


class ChosenReward(Mean):
    """The mean over pairs of the better response's reward.

    Examples:
        >>> metric = ChosenReward()
        >>> metric.update(reward=torch.tensor([[1.0, 4.0, 0.0]]), scores=torch.tensor([[3.0, 2.0, 1.0]]))
        >>> metric.compute()  # (1 + 1 + 4) / 3
        tensor(2.)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(reward.unsqueeze(-1), pairs_of(scores, present))


class RejectedReward(Mean):
    """The mean over pairs of the worse response's reward.

    Examples:
        >>> metric = RejectedReward()
        >>> metric.update(reward=torch.tensor([[1.0, 4.0, 0.0]]), scores=torch.tensor([[3.0, 2.0, 1.0]]))
        >>> metric.compute()  # (4 + 0 + 0) / 3
        tensor(1.3333)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(reward.unsqueeze(-2), pairs_of(scores, present))


class ChosenLogProb(Mean):
    """The mean over pairs of the better response's log-prob under the policy.

    Examples:
        >>> metric = ChosenLogProb()
        >>> policy = ResponseLogProbs(sum=torch.tensor([[-6.0, -4.0]]), length=torch.tensor([[6, 2]]))
        >>> metric.update(policy, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(-6.)
    """

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(policy.sum.unsqueeze(-1), pairs_of(scores, present))


class RejectedLogProb(Mean):
    """The mean over pairs of the worse response's log-prob under the policy.

    Examples:
        >>> metric = RejectedLogProb()
        >>> policy = ResponseLogProbs(sum=torch.tensor([[-6.0, -4.0]]), length=torch.tensor([[6, 2]]))
        >>> metric.update(policy, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(-4.)
    """

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(policy.sum.unsqueeze(-2), pairs_of(scores, present))


class RankingAccuracy(Share):
    """The share of pairs in which the policy itself gives the better response the higher probability.

    Chen et al., "Preference Learning Algorithms Do Not Learn Preference Rankings", arXiv 2405.19534.
    No reference enters, so this is what sampling from the policy will show. Ties count as 0.5.

    Examples:
        >>> metric = RankingAccuracy()
        >>> policy = ResponseLogProbs(sum=torch.tensor([[-6.0, -4.0]]), length=torch.tensor([[6, 2]]))
        >>> metric.update(policy, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.)
    """

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(policy.sum), pairs_of(scores, present))


class NormalizedRankingAccuracy(Share):
    """``RankingAccuracy`` of the average log-prob per token, which does not favour short responses.

    Examples:
        >>> metric = NormalizedRankingAccuracy()
        >>> policy = ResponseLogProbs(sum=torch.tensor([[-6.0, -4.0]]), length=torch.tensor([[6, 2]]))
        >>> metric.update(policy, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()  # -1 per token against -2
        tensor(1.)
    """

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(policy.mean), pairs_of(scores, present))


class LogRatioMargin(Mean):
    """The mean over pairs of h, the better response's log-ratio to reference k minus the worse one's.

    The reward margin of DPO without its β, so that it compares across values of β and with IPO. The average
    marginal of Sr-DPO's study, arXiv 2405.21040.

    Args:
        reference: k, the reference's place in the configured list.

    Examples:
        >>> metric = LogRatioMargin(reference=0)
        >>> policy = ResponseLogProbs(sum=torch.tensor([[-6.0, -4.0]]), length=torch.tensor([[6, 2]]))
        >>> references = torch.tensor([[[-8.0, -5.0]]])
        >>> metric.update(policy, references, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()  # (-6 + 8) - (-4 + 5)
        tensor(1.)
    """

    def __init__(self, *, reference: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference

    def update(
        self, policy: ResponseLogProbs, references: Tensor, scores: Tensor, present: Tensor | None = None
    ) -> None:
        """Count a batch: ``policy`` of [B, R], ``references`` [K, B, R], ``scores``, ``present`` [B, R]."""
        ratio = log_ratio(policy, references[self.reference])
        self.add(winner_minus_loser(ratio), pairs_of(scores, present))


class ViewAccuracy(PreferenceAccuracy):
    """``PreferenceAccuracy`` of the rewards on a second view, such as Sr-DPO's quality prompt.

    Args:
        view: the view's name.

    Examples:
        >>> metric = ViewAccuracy(view="quality")
        >>> metric.update({"quality": torch.tensor([[2.0, 1.0]])}, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(1.)
    """

    def __init__(self, *, view: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.view = view

    def update(  # type: ignore[override]
        self, view_rewards: Mapping[str, Tensor], scores: Tensor, present: Tensor | None = None
    ) -> None:
        """Count a batch: ``view_rewards`` [B, R] by view, ``scores`` [B, R], ``present`` [B, R]."""
        super().update(view_rewards[self.view], scores, present)


class ViewMargin(Margin):
    """``Margin`` of the rewards on a second view.

    Args:
        view: the view's name.

    Examples:
        >>> metric = ViewMargin(view="quality")
        >>> metric.update({"quality": torch.tensor([[2.0, 0.5]])}, scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(1.5000)
    """

    def __init__(self, *, view: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.view = view

    def update(  # type: ignore[override]
        self, view_rewards: Mapping[str, Tensor], scores: Tensor, present: Tensor | None = None
    ) -> None:
        """Count a batch: ``view_rewards`` [B, R] by view, ``scores`` [B, R], ``present`` [B, R]."""
        super().update(view_rewards[self.view], scores, present)

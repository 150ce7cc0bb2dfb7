"""Metrics over all pairs of a prompt's responses whose scores differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from pl_prefopt.metrics.states import ExactMetric, Mean, Share
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.types import ResponseLogProbs


def winner_minus_loser(values: Tensor) -> Tensor:
    """Return [B, R, R] differences of ``values`` [B, R]: at [b, i, j] that of i, the winner, over j."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def log_ratio(policy: ResponseLogProbs, reference: Tensor) -> Tensor:
    """Return float32 [B, R]: log π_θ(y|x) − log π_ref(y|x)."""
    return policy.sum.float() - reference.float()


class PreferenceAccuracy(Share):
    """The share of pairs in which the better response has the higher reward; a draw counts one half.

    A policy that equals its reference gives every response the reward 0 and so reads 0.5, which is
    chance. (TRL counts a draw as wrong and reads 0 there.)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(reward), ALL_PAIRS(scores, present))


class Margin(Mean):
    """The mean over pairs of the better response's reward minus the worse one's."""

    def update(self, reward: Tensor, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(reward.float()), ALL_PAIRS(scores, present))


class Margins(ExactMetric):
    """All pairs' margins, the better response's reward minus the worse one's: what a histogram shows."""

    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, reward: Tensor, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        wins = ALL_PAIRS(scores, present)
        # What is no pair becomes NaN and is left out at the end: to select now would make a GPU wait.
        self.values.append(torch.where(wins, winner_minus_loser(reward.float()), torch.nan).flatten())

    def compute(self) -> Tensor:
        """Return float32 [pairs], in no particular order, those that are numbers."""
        if isinstance(self.values, list) and not self.values:
            return torch.zeros(0, device=self.device)
        values = dim_zero_cat(self.values)
        return values[values.isfinite()]


class ChosenReward(Mean):
    """The mean over pairs of the better response's reward."""

    def update(self, reward: Tensor, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(reward.unsqueeze(-1), ALL_PAIRS(scores, present))


class RejectedReward(Mean):
    """The mean over pairs of the worse response's reward."""

    def update(self, reward: Tensor, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``reward`` [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(reward.unsqueeze(-2), ALL_PAIRS(scores, present))


class ChosenLogProb(Mean):
    """The mean over pairs of the better response's log-prob under the policy."""

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(policy.sum.unsqueeze(-1), ALL_PAIRS(scores, present))


class RejectedLogProb(Mean):
    """The mean over pairs of the worse response's log-prob under the policy."""

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(policy.sum.unsqueeze(-2), ALL_PAIRS(scores, present))


class RankingAccuracy(Share):
    """The share of pairs in which the policy itself gives the better response the higher probability.

    Chen et al., "Preference Learning Algorithms Do Not Learn Preference Rankings", arXiv 2405.19534.
    No reference enters, so this is what sampling from the policy will show. A draw counts one half.
    """

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(policy.sum), ALL_PAIRS(scores, present))


class NormalizedRankingAccuracy(Share):
    """``RankingAccuracy`` of the average log-prob a token, which does not favour short responses."""

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` [B, R], ``present`` [B, R]."""
        self.add(winner_minus_loser(policy.mean), ALL_PAIRS(scores, present))


class Marginal(Mean):
    """The mean over pairs of h, the better response's log-ratio to reference k minus the worse one's.

    The reward margin of DPO without its β, so that it compares across values of β and with IPO. The average
    marginal of Sr-DPO's study, arXiv 2405.21040.

    Args:
        reference: k, the reference's place in the configured list.
    """

    def __init__(self, *, reference: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference

    def update(self, policy: ResponseLogProbs, references: Tensor, scores: Tensor, present: Tensor) -> None:
        """Count a batch: ``policy`` of [B, R], ``references`` [K, B, R], ``scores``, ``present`` [B, R]."""
        ratio = log_ratio(policy, references[self.reference])
        self.add(winner_minus_loser(ratio), ALL_PAIRS(scores, present))


class ViewAccuracy(PreferenceAccuracy):
    """``PreferenceAccuracy`` of the rewards on a second view, such as Sr-DPO's quality prompt.

    Args:
        view: the view's name.
    """

    def __init__(self, *, view: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.view = view

    def update(self, view_rewards: Mapping[str, Tensor], scores: Tensor, present: Tensor) -> None:  # type: ignore[override]
        """Count a batch: ``view_rewards`` [B, R] by view, ``scores`` [B, R], ``present`` [B, R]."""
        super().update(view_rewards[self.view], scores, present)


class ViewMargin(Margin):
    """``Margin`` of the rewards on a second view.

    Args:
        view: the view's name.
    """

    def __init__(self, *, view: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.view = view

    def update(self, view_rewards: Mapping[str, Tensor], scores: Tensor, present: Tensor) -> None:  # type: ignore[override]
        """Count a batch: ``view_rewards`` [B, R] by view, ``scores`` [B, R], ``present`` [B, R]."""
        super().update(view_rewards[self.view], scores, present)

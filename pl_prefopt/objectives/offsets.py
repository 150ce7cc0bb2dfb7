"""Offsets as settings: what the margin of a pair must reach beyond 0, in units of the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.scores import Rewards
from pl_prefopt.types import ScoredBatch


class Offset(ABC):
    """Is subtracted from the margin of each pair."""

    @property
    def needs(self) -> Needs:
        """What the offset must be given beyond what the score is: by default nothing."""
        return Needs()

    @abstractmethod
    def __call__(self, batch: ScoredBatch, rewards: Rewards, pairs: Tensor) -> Tensor:
        """Return the offset of each pair, broadcastable to [B, R, R]; finite also where there is no pair.

        Args:
            batch: log-probs, 0 at absent responses.
            rewards: r_w and r_l of each pair, with gradient.
            pairs: bool [B, R, R].
        """


@dataclass(frozen=True)
class Margin(Offset):
    """A constant γ: SimPO's target margin.

    Args:
        gamma: γ ≥ 0.

    Raises:
        ConfigError: if ``gamma`` is negative.
    """

    gamma: float

    def __post_init__(self) -> None:
        non_negative("gamma", self.gamma)

    def __call__(self, batch: ScoredBatch, rewards: Rewards, pairs: Tensor) -> Tensor:
        return rewards.chosen.new_tensor(self.gamma)


@dataclass(frozen=True)
class ScoreGap(Offset):
    """α(s_w − s_l): better graded winners must win by more. 0 in rows without grades.

    Reconstructed after ODPO (Amini et al., arXiv 2402.10571): its offset α f(s_w − s_l), f the identity.

    Args:
        alpha: α > 0, in units of the reward per unit of the score.

    Raises:
        ConfigError: if ``alpha`` is not above 0.
    """

    alpha: float

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)

    def __call__(self, batch: ScoredBatch, rewards: Rewards, pairs: Tensor) -> Tensor:
        return self.alpha * torch.where(_graded(batch, pairs), _gap(batch.scores), 0.0)


@dataclass(frozen=True)
class LogScoreGap(Offset):
    """α log(s_w − s_l), negative for gaps below 1. 0 in rows without grades.

    Reconstructed after ODPO (Amini et al., arXiv 2402.10571): its offset α f(s_w − s_l), f the logarithm.

    Args:
        alpha: α > 0, in units of the reward.

    Raises:
        ConfigError: if ``alpha`` is not above 0.
    """

    alpha: float

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)

    def __call__(self, batch: ScoredBatch, rewards: Rewards, pairs: Tensor) -> Tensor:
        return self.alpha * torch.where(_graded(batch, pairs), _gap(batch.scores), 1.0).log()


@dataclass(frozen=True)
class LengthGap(Offset):
    """α(|y_w| − |y_l|), in tokens of the policy: a longer winner must win by more (R-DPO).

    Park et al., "Disentangling Length from Quality in Direct Preference Optimization", arXiv 2403.19159.

    Args:
        alpha: α, in units of the reward per token.
    """

    alpha: float

    def __call__(self, batch: ScoredBatch, rewards: Rewards, pairs: Tensor) -> Tensor:
        return self.alpha * _gap(batch.policy.length.to(rewards.chosen.dtype))


@dataclass(frozen=True)
class Drop(Offset):
    """λ max(0, −r_w): a winner below the reference must first catch up with it (DPO-Positive).

    Pal et al. ("Smaug"), arXiv 2402.13228. Unlike the other offsets it carries a gradient.

    Args:
        penalty: λ ≥ 0.

    Raises:
        ConfigError: if ``penalty`` is negative.
    """

    penalty: float

    def __post_init__(self) -> None:
        non_negative("penalty", self.penalty)

    def __call__(self, batch: ScoredBatch, rewards: Rewards, pairs: Tensor) -> Tensor:
        return self.penalty * (-rewards.chosen).relu()


def _gap(values: Tensor) -> Tensor:
    """Return the value of the winner minus that of the loser, [B, R, R]."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def _graded(batch: ScoredBatch, pairs: Tensor) -> Tensor:
    """Return the pairs of which the difference of scores means something."""
    return pairs & batch.graded.view(-1, 1, 1)

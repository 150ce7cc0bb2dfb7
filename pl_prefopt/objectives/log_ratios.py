"""Scores that weigh policy and references, or winners and losers, by different factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.scores import ReferenceScore, ResponseScore, Rewards, Score, Scored


@dataclass(frozen=True)
class PartialLogRatio(ReferenceScore):
    """β[log π_θ(y|x) − γ log π_ref(y|x)]: a reference of which a share counts.

    Args:
        beta: β > 0, the scale of the reward.
        gamma: γ ≥ 0; 1 is DPO's reward, 0 that of no reference.

    Raises:
        ConfigError: if a setting is out of range.
    """

    beta: float
    gamma: float

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        non_negative("gamma", self.gamma)

    def reward(self, scored: Scored) -> Tensor:
        return self.beta * (scored.policy.sum - self.gamma * scored.references[0])


@dataclass(frozen=True)
class GeometricLogRatio(ResponseScore):
    """β[log π_θ(y|x) − Σ_k w_k log π_k(y|x)]: the weighted geometric mean of references as reference.

    Args:
        beta: β > 0, the scale of the reward.
        weights: w_k ≥ 0 of each reference, in the order of ``references.members``; they add up to 1.

    Raises:
        ConfigError: if a setting is out of range.
    """

    beta: float
    weights: Sequence[float]

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if any(weight < 0 for weight in self.weights) or not abs(sum(self.weights) - 1) < 1e-6:
            raise ConfigError(
                f"weights must be numbers of at least 0 that add up to 1, but are {list(self.weights)}."
            )

    @property
    def needs(self) -> Needs:
        """One reference per weight."""
        return Needs(min_references=len(self.weights), max_references=len(self.weights))

    def reward(self, scored: Scored) -> Tensor:
        mixed = sum(
            (w * logps for w, logps in zip(self.weights, scored.references, strict=True)),
            torch.zeros_like(scored.policy.sum),
        )
        return self.beta * (scored.policy.sum - mixed)


@dataclass(frozen=True)
class FlexibleLogRatio(Score):
    """β⁺a(y_w) for winners and β⁻a(y_l) for losers, a the log-ratio. A response's own reward is β⁺a(y).

    Args:
        beta_chosen: β⁺ > 0.
        beta_rejected: β⁻ > 0.

    Raises:
        ConfigError: if a setting is out of range.
    """

    beta_chosen: float
    beta_rejected: float

    def __post_init__(self) -> None:
        positive("beta_chosen", self.beta_chosen)
        positive("beta_rejected", self.beta_rejected)

    @property
    def needs(self) -> Needs:
        """Exactly one reference."""
        return Needs(min_references=1, max_references=1)

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        ratio = torch.where(present, scored.policy.sum - scored.references[0], 0.0)
        chosen, rejected = self.beta_chosen * ratio, self.beta_rejected * ratio
        return Rewards(chosen=chosen.unsqueeze(-1), rejected=rejected.unsqueeze(-2), response=chosen)

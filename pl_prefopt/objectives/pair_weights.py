"""Weights of pairs as settings. They multiply the loss of a pair and carry no gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.token_scores import tokens_of
from pl_prefopt.requests import TokenRequest


class PairWeight(ABC):
    """Multiplies the loss of each pair."""

    @property
    def needs(self) -> Needs:
        """What the weight must be given beyond what the score is: by default nothing."""
        return Needs()

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return the weight of each pair, broadcastable to [B, R, R]; finite also where there is no pair."""


@dataclass(frozen=True)
class ConstantWeight(PairWeight):
    """The same weight for all pairs, such as ORPO's λ, the weight of the odds ratio.

    Args:
        value: λ ≥ 0.

    Raises:
        ConfigError: if ``value`` is negative.
    """

    value: float

    def __post_init__(self) -> None:
        non_negative("value", self.value)

    def __call__(self, compared: Comparisons) -> Tensor:
        return compared.rewards.chosen.new_tensor(self.value)


@dataclass(frozen=True)
class PolicyProbability(PairWeight):
    """w(y_w) w(y_l) with w(y) = exp(mean_t[log π_θ(y_t) − log Σ_v π_θ(v)²]): WPO's weights.

    Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv 2406.11827, eq. 2; TRL's
    ``use_weighting``. Pairs that the policy itself would rather write count more, as if they were its own
    samples. A token's factor is 1 on average over tokens sampled from the policy, and 1 for every token of a
    uniform distribution. Pairs are not normalised: weights far from 1 act like another learning rate.
    """

    @property
    def needs(self) -> Needs:
        """The policy's numbers per token; no reference need have any."""
        return Needs(tokens=TokenRequest(references=False, collisions=True))

    def __call__(self, compared: Comparisons) -> Tensor:
        tokens = tokens_of(compared.batch)
        assert tokens.collisions is not None, "asked for in `needs`"
        length = tokens.counted.sum(dim=-1).clamp(min=1)
        aligned = (tokens.policy.detach() - tokens.collisions).sum(dim=-1) / length
        weight = aligned.exp()
        return weight.unsqueeze(-1) * weight.unsqueeze(-2)

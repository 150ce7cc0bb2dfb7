"""Scores as settings: the implicit reward of a response, from log-probs of the policy and of references.

Everything after the score is in units of this reward: margins, offsets and links. A score therefore carries
the scale β.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pl_prefopt.functional import log1mexp
from pl_prefopt.functional.numerics import tangent_expm1
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.divergences import REVERSE_KL, Divergence
from pl_prefopt.objectives.pair_references import VIRTUAL_REFERENCE, PairReference
from pl_prefopt.requests import REWARD
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Column, ResponseLogProbs, TokenNumbers


class Scored(Protocol):
    """What a score reads: the batch as it is, or a second view of it.

    Attributes:
        policy: the policy's log-probs of each response, [B, R].
        references: sums of log-probs of each reference, [K, B, R].
        tokens: numbers per token, for scores that need them; ``None`` on second views.
        outputs: outputs of heads by name.
        columns: the rows' columns that the score asked for; empty on second views.
    """

    @property
    def policy(self) -> ResponseLogProbs: ...
    @property
    def references(self) -> Tensor: ...
    @property
    def tokens(self) -> TokenNumbers | None: ...
    @property
    def outputs(self) -> Mapping[str, Tensor]: ...
    @property
    def columns(self) -> Mapping[str, Column]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Implicit rewards, with gradient. Winners lie by row and losers by column.

    A score of responses gives a response the same reward in all its pairs; against a reference whose weights
    depend on the pair it has another one in each.

    Attributes:
        chosen: r_w, [B, R, 1] or [B, R, R].
        rejected: r_l, [B, 1, R] or [B, R, R].
        response: [B, R], each response's reward by itself.
        stats: scalars for the dashboard, detached.
    """

    chosen: Tensor
    rejected: Tensor
    response: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)


class Score(ABC):
    """Gives each response its implicit reward."""

    @property
    def needs(self) -> Needs:
        """What the score must be given: by default the policy alone."""
        return Needs()

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """What the numbers in ``Rewards.stats`` are: by default there are none."""
        return ()

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:  # noqa: B027 - few scores read the rows
        """Raise a ``ContractError`` or a ``DataError`` if it can't be read from the rows of a split."""

    @abstractmethod
    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards; finite everywhere, whatever they are at absent responses.

        Args:
            scored: log-probs, 0 at absent responses.
            present: bool [B, R].
            pairs: bool [B, R, R], the comparisons that will be made.
        """

    @property
    def token_rewarded(self) -> bool:
        """Whether the reward is a sum over tokens, so that ``token_reward`` returns the addends."""
        return False

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return the share of each token in its response's reward, [B, R, T], 0 where a token doesn't count.

        ``None`` where the reward is no sum over tokens, as by default, or where numbers per token that it
        takes haven't been asked for.

        Args:
            scored: log-probs, with numbers per token.
            pairs: bool [B, R, R], the comparisons that are made.
        """
        return None


class ResponseScore(Score):
    """A score that depends on the response alone."""

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards."""
        reward = torch.where(present, self.reward(scored), 0.0)
        return Rewards(chosen=reward.unsqueeze(-1), rejected=reward.unsqueeze(-2), response=reward)

    @abstractmethod
    def reward(self, scored: Scored) -> Tensor:
        """Return r(y), [B, R], with gradient."""


@dataclass(frozen=True)
class HeadReward(ResponseScore):
    """β r(x, y), the output of a reward head with one output: a reward model's reward.

    Args:
        beta: β > 0, the scale of the reward.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    @property
    def needs(self) -> Needs:
        """A reward head with one output, and no log-probs."""
        return Needs(max_references=0, reward_outputs=1, log_probs=False)

    def reward(self, scored: Scored) -> Tensor:
        return self.beta * scored.outputs[REWARD].squeeze(-1)


class ReferenceScore(ResponseScore):
    """A score that compares the policy with one reference."""

    @property
    def needs(self) -> Needs:
        """Exactly one reference."""
        return Needs(min_references=1, max_references=1)


@dataclass(frozen=True)
class LogRatio(ReferenceScore):
    """β f′(π_θ(y|x) / π_ref(y|x)), which is β log(π_θ / π_ref) for the reverse KL: DPO's reward.

    Args:
        beta: β > 0, the strength of the KL penalty; larger values keep the policy closer to the reference.
        divergence: f.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 0.1
    divergence: Divergence = REVERSE_KL

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def reward(self, scored: Scored) -> Tensor:
        return self.beta * self.divergence(scored.policy.sum - scored.references[0])

    @property
    def token_rewarded(self) -> bool:
        """True for the reverse KL alone: other divergences aren't sums over tokens."""
        return self.divergence == REVERSE_KL

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return βa_t for the reverse KL, where there are the reference's log-probs per token."""
        tokens = scored.tokens
        if tokens is None or not len(tokens.references) or not self.token_rewarded:
            return None
        return self.beta * (tokens.policy - tokens.references[0])


@dataclass(frozen=True)
class MeanLogRatio(ReferenceScore):
    """β log(π_θ(y|x) / π_ref(y|x)) / |y|: the log-ratio per token of the policy.

    The reference is divided by the policy's length too: its own tokeniser may count otherwise, and two
    averages over different numbers of tokens do not compare.

    Args:
        beta: β > 0, the strength of the KL penalty.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def reward(self, scored: Scored) -> Tensor:
        length = scored.policy.length.clamp(min=1)
        return self.beta * (scored.policy.mean - scored.references[0] / length)


@dataclass(frozen=True)
class VirtualLogRatio(Score):
    """β[log π_θ(y|x) − log π̃(y|x)] against a reference made of those configured, pair by pair: MRPO's reward.

    Args:
        beta: β > 0, the strength of the KL penalty.
        reference: π̃.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 0.1
    reference: PairReference = VIRTUAL_REFERENCE

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    @property
    def needs(self) -> Needs:
        """As many references as π̃ is made of."""
        fewest, most = self.reference.num_references
        return Needs(min_references=fewest, max_references=most)

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """Those of π̃."""
        return self.reference.stats

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        policy, grid = scored.policy.sum, self.reference(scored.references, present, pairs)
        return Rewards(
            chosen=self.beta * (policy.unsqueeze(-1) - grid.chosen),
            rejected=self.beta * (policy.unsqueeze(-2) - grid.rejected),
            response=torch.where(present, self.beta * (policy - grid.response), 0.0),
            stats=grid.stats,
        )


@dataclass(frozen=True)
class MeanLogProb(ResponseScore):
    """β log π_θ(y|x) / |y|, the log-prob per token: SimPO's reward.

    Args:
        beta: β > 0, the scale of the reward.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def reward(self, scored: Scored) -> Tensor:
        return self.beta * scored.policy.mean

    @property
    def token_rewarded(self) -> bool:
        """True: it is a mean over tokens."""
        return True

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return β log p_t / |y|."""
        if scored.tokens is None:
            return None
        return self.beta * scored.tokens.policy / scored.policy.length.clamp(min=1).unsqueeze(-1)


@dataclass(frozen=True)
class SumLogProb(ResponseScore):
    """β log π_θ(y|x): CPO's reward.

    Args:
        beta: β > 0, the scale of the reward.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def reward(self, scored: Scored) -> Tensor:
        return self.beta * scored.policy.sum

    @property
    def token_rewarded(self) -> bool:
        """True: it is a sum over tokens."""
        return True

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return β log p_t."""
        return None if scored.tokens is None else self.beta * scored.tokens.policy


@dataclass(frozen=True)
class LogOdds(ResponseScore):
    """log[p / (1 − p)] with p = exp(log π_θ(y|x) / |y|), the mean likelihood per token: ORPO's odds."""

    def reward(self, scored: Scored) -> Tensor:
        return scored.policy.mean - log1mexp(scored.policy.mean)


@dataclass(frozen=True)
class MeanLikelihood(ResponseScore):
    """p = exp(log π_θ(y|x) / (|y| T)), the mean likelihood per token: MPPO's reward.

    Args:
        temperature: T > 0; 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if ``temperature`` is not above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def reward(self, scored: Scored) -> Tensor:
        return (scored.policy.mean / self.temperature).exp()


@dataclass(frozen=True)
class TransformedMeanLogProb(ResponseScore):
    """β(1 − p^−α)/α with p = exp(log π_θ(y|x) / |y|), the mean likelihood per token: AlphaPO's reward.

    For α → 0 it is β log p, SimPO's reward; its slope in log p is βp^−α. Where −α log p exceeds 30, its
    tangent is followed instead, which keeps value and gradient finite.

    Args:
        beta: β > 0, the scale of the reward.
        alpha: α, the shape of the reward.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float
    alpha: float

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def reward(self, scored: Scored) -> Tensor:
        if self.alpha == 0:
            return self.beta * scored.policy.mean
        return self.beta * tangent_expm1(-self.alpha * scored.policy.mean) / -self.alpha

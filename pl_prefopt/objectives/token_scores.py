"""Scores of tokens as settings: rewards from log-probs and KL divergences at each token of a response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.scores import Rewards, Score, Scored
from pl_prefopt.requests import TokenRequest
from pl_prefopt.types import Column, ResponseLogProbs, TokenNumbers

PAGE = "methods/token_level.md"


@dataclass(frozen=True)
class LogRatioKL(Score):
    """β(a + K), a the log-ratio and K = Σ_t KL(π_ref ‖ π_θ) over the tokens of the response: TDPO1's reward.

    Zeng et al., "Token-level Direct Preference Optimization", arXiv 2404.11999. K grows with the length of
    the response, and the reward rises where the policy leaves the reference: see ``LogRatioStoppedKL``.

    Args:
        beta: β > 0, the strength of the KL penalty.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    @property
    def needs(self) -> Needs:
        """One reference that reads the policy's tokens, and its forward KL divergence."""
        return Needs(min_references=1, max_references=1, tokens=TokenRequest(kl=("forward",)))

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards; see ``LogRatioStoppedKL`` for the other treatment of K."""
        divergence = _divergence(scored)
        return self._rewards(scored, present, divergence, divergence)

    @property
    def token_rewarded(self) -> bool:
        """True."""
        return True

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return β(a_t + K_t)."""
        tokens = tokens_of(scored)
        return self.beta * (tokens.policy - tokens.references[0] + tokens.kl["forward"][0])

    def _rewards(self, scored: Scored, present: Tensor, of_winner: Tensor, of_loser: Tensor) -> Rewards:
        ratio = scored.policy.sum - scored.references[0]
        chosen, rejected, response = (
            torch.where(present, self.beta * (ratio + divergence), 0.0)
            for divergence in (of_winner, of_loser, _divergence(scored))
        )
        return Rewards(chosen=chosen.unsqueeze(-1), rejected=rejected.unsqueeze(-2), response=response)


@dataclass(frozen=True)
class LogRatioStoppedKL(LogRatioKL):
    """β(a_w + α sg(K_w)) of a winner and β(a_l + αK_l) of a loser: TDPO2's rewards. sg stops the gradient.

    Zeng et al., arXiv 2404.11999. A winner's K has no gradient, so that nothing pushes the policy away from
    the reference on winners, as TDPO1 does. A response by itself has the reward β(a + K), without α, as in
    the authors' code.

    Args:
        beta: β > 0, the strength of the KL penalty.
        alpha: α ≥ 0, the weight of K.

    Raises:
        ConfigError: if a setting is out of range.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        non_negative("alpha", self.alpha)

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards."""
        divergence = self.alpha * _divergence(scored)
        return self._rewards(scored, present, divergence.detach(), divergence)


@dataclass(frozen=True)
class GuidedLogRatio(Score):
    """Σ_t β(1 ± α r̂_t) a_t, + for a winner and − for a loser, r̂_t = β log(π_g / π_ref)(y_t): TGDPO's rewards.

    Zhu et al., "TGDPO", arXiv 2506.14574. a_t is the log-ratio of token t to the first reference; the second
    reference is the guide π_g, a model that has been preference-tuned already. A response by itself has the
    reward βa, since the sign belongs to its place in a pair.

    Args:
        beta: β > 0, the strength of the KL penalty.
        alpha: α ≥ 0, the influence of the guide.

    Raises:
        ConfigError: if a setting is out of range.
    """

    beta: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        non_negative("alpha", self.alpha)

    @property
    def needs(self) -> Needs:
        """Two references that read the policy's tokens: the reference and the guide."""
        return Needs(min_references=2, max_references=2, tokens=TokenRequest())

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards."""
        tokens = tokens_of(scored)
        reference, guide = tokens.references
        ratio = tokens.policy - reference
        plain, guided = ratio.sum(dim=-1), (self.beta * (guide - reference) * ratio).sum(dim=-1)
        chosen, rejected, response = (
            torch.where(present, self.beta * (plain + sign * self.alpha * guided), 0.0) for sign in (1, -1, 0)
        )
        return Rewards(chosen=chosen.unsqueeze(-1), rejected=rejected.unsqueeze(-2), response=response)

    @property
    def token_rewarded(self) -> bool:
        """True."""
        return True

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return βa_t."""
        tokens = tokens_of(scored)
        return self.beta * (tokens.policy - tokens.references[0])


@dataclass(frozen=True)
class LengthDesensitized(Score):
    """Another score of log p = Σ_{t ≤ m} log p_t + α Σ_{t > m} log p_t, m the shorter length: LD-DPO.

    Liu et al., "Length Desensitization in Direct Preference Optimization", arXiv 2409.06411. What the longer
    response of a pair has beyond the shorter one's length counts α, under the policy and all references.
    Lengths count tokens of the policy. Scores that divide by a length divide by the whole length, as TRL's
    ``ld_alpha`` does. A response by itself has its reward without the modification.

    Args:
        score: the score to modify, any that reads log-probs of responses.
        alpha: α in [0, 1]; 1 changes nothing.

    Raises:
        ConfigError: if ``alpha`` is out of range, or ``score`` reads tokens itself.
    """

    score: Score
    alpha: float

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"expected `alpha` from 0 to 1, got {self.alpha}.")
        if self.score.needs.tokens is not None or not self.score.needs.log_probs:
            read = "single tokens" if self.score.needs.log_probs else "no log-probs"
            raise ConfigError(
                f"LengthDesensitized sums weighted tokens, but {type(self.score).__name__} reads {read}: set "
                "`score` to one of log-probs of responses, such as LogRatio."
            )

    @property
    def needs(self) -> Needs:
        """What the score needs, and log-probs per token: of the references too, if the score needs any."""
        needs = self.score.needs
        return Needs.of_all(needs, Needs(tokens=TokenRequest(references=needs.min_references > 0)))

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """Those of the score."""
        return self.score.stats

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards: each pair is scored by itself, as a row of two responses."""
        rows = _Pairs(tokens_of(scored), scored, present, pairs, self.alpha)
        rewards = self.score(rows, rows.present, rows.pairs)
        chosen, rejected = (
            reward.expand(-1, 2, 2)[:, 0, 1].view_as(pairs) for reward in (rewards.chosen, rewards.rejected)
        )
        plain = self.score(scored, present, pairs)
        return Rewards(chosen=chosen, rejected=rejected, response=plain.response, stats=rewards.stats)

    @property
    def token_rewarded(self) -> bool:
        """Whether the score has rewards per token."""
        return self.score.token_rewarded

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor | None:
        """Return the score's rewards per token, without the modification."""
        return self.score.token_reward(scored, pairs)


class _Pairs:
    """The B·R·R pairs of a batch as rows of two responses, with the tail of the longer one weighted by α."""

    tokens = None
    outputs: Mapping[str, Tensor] = {}
    columns: Mapping[str, Column] = {}

    def __init__(
        self, tokens: TokenNumbers, scored: Scored, present: Tensor, pairs: Tensor, alpha: float
    ) -> None:
        length = scored.policy.length
        shared = torch.minimum(length.unsqueeze(-1), length.unsqueeze(-2))
        place = tokens.counted.cumsum(dim=-1)  # of a token among those that count, from 1
        one = tokens.policy.new_ones(())  # for α in the precision of the log-probs
        weight = torch.where(place.unsqueeze(-2) <= shared.unsqueeze(-1), one, alpha)
        references = torch.einsum("brst,kbrt->kbrs", weight, tokens.references)
        self.policy = ResponseLogProbs(
            sum=_as_rows(torch.einsum("brst,brt->brs", weight, tokens.policy)),
            length=_as_rows(length.unsqueeze(-1).expand_as(pairs)),
        )
        self.references = _as_rows(references)
        self.present = _as_rows(present.unsqueeze(-1).expand_as(pairs))
        first_wins = pairs.flatten().view(-1, 1, 1)
        self.pairs = first_wins & torch.tensor([[False, True], [False, False]], device=pairs.device)


def _as_rows(grid: Tensor) -> Tensor:
    """From the first response's value in each pair, [..., B, R, R], to both values, [..., B·R·R, 2]."""
    return torch.stack([grid, grid.transpose(-2, -1)], dim=-1).flatten(-4, -2)


def tokens_of(scored: Scored) -> TokenNumbers:
    """Return the numbers per token.

    Raises:
        ContractError: if there are none, as on second views.
    """
    if scored.tokens is None:
        raise ContractError("A score of tokens needs the rows as they are: second views have sums alone.")
    return scored.tokens


def _divergence(scored: Scored) -> Tensor:
    """Return K = Σ_t KL(π_ref ‖ π_θ), [B, R]."""
    return tokens_of(scored).kl["forward"][0].sum(dim=-1)

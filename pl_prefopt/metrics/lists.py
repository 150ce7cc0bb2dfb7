"""Metrics over all responses to a prompt at once.

They count prompts with at least two different known scores. Prompts are weighted equally, however many
responses they have; responses with an unknown score are ignored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_normalized_dcg

from pl_prefopt.metrics.pairs import winner_minus_loser
from pl_prefopt.metrics.states import Mean, all_present
from pl_prefopt.pairing import ALL_PAIRS, below_best, best, known, rankable
from pl_prefopt.types import ResponseLogProbs


class BestOfN(Mean):
    """The share of prompts whose highest reward goes to a response of the highest score.

    If several responses share the highest reward, the value is the expectation over a uniform choice among
    them, so an untrained policy whose rewards are all 0 scores at chance.

    Examples:
        >>> metric = BestOfN()
        >>> metric.update(
        ...     reward=torch.tensor([[4.0, 1.0, 2.0], [0.0, 0.0, 0.0]]),
        ...     scores=torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 3.0]]),
        ... )
        >>> metric.compute()  # (1 + 2/3) / 2
        tensor(0.8333)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward``, ``scores`` and ``present`` [B, R]."""
        present = all_present(scores, present)
        first = best(reward.float(), known(scores, present))
        right = first & best(scores, present)
        self.add(right.sum(dim=-1) / first.sum(dim=-1).clamp(min=1), rankable(scores, present))


class NDCG(Mean):
    """The mean over prompts of the normalised discounted cumulative gain of the order by reward.

    A response's gain is its score minus the prompt's lowest, so that the value does not depend on the offset
    of the scores; responses with equal rewards share the mean discount of their places.

    Examples:
        >>> metric = NDCG()
        >>> metric.update(reward=torch.tensor([[0.0, 5.0]]), scores=torch.tensor([[9.0, 8.0]]))
        >>> metric.compute()  # a gain of 1 in the second place: 1 / log2(3)
        tensor(0.6309)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward``, ``scores`` and ``present`` [B, R]."""
        present = all_present(scores, present)
        counted = rankable(scores, present)
        prompts = zip(reward[counted], scores[counted], known(scores, present)[counted], strict=True)
        values = [
            retrieval_normalized_dcg(rewards[keep].float(), graded[keep] - graded[keep].min())
            for rewards, graded, keep in prompts
        ]
        if values:
            gains = torch.stack(values)
            self.add(gains, torch.ones_like(gains, dtype=torch.bool))


class KendallWithin(Mean):
    """The mean over prompts of Kendall's τ-b of reward and score; 0 where all its rewards are equal.

    Examples:
        >>> metric = KendallWithin()
        >>> metric.update(reward=torch.tensor([[2.0, 3.0, 1.0]]), scores=torch.tensor([[3.0, 2.0, 1.0]]))
        >>> metric.compute()  # (2 - 1) / 3
        tensor(0.3333)
    """

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward``, ``scores`` and ``present`` [B, R]."""
        present = all_present(scores, present)
        there = known(scores, present)
        both = there.unsqueeze(-1) & there.unsqueeze(-2)
        by_score = winner_minus_loser(torch.where(there, scores, 0.0)).sign() * both
        by_reward = winner_minus_loser(reward.float()).sign() * both
        agreement = (by_score * by_reward).sum(dim=(-2, -1))
        comparisons = by_score.abs().sum(dim=(-2, -1)) * by_reward.abs().sum(dim=(-2, -1))
        self.add(agreement / comparisons.clamp(min=1).sqrt(), rankable(scores, present))


class RankLikelihood(Mean):
    """The mean over prompts of p = exp(log π(y|x) / |y|) of the response with the k-th highest score.

    Responses with equal scores share the ranks that they occupy.

    Args:
        rank: k, counted from 1; prompts with fewer responses do not count.

    Examples:
        >>> metric = RankLikelihood(rank=2)
        >>> policy = ResponseLogProbs(
        ...     sum=torch.tensor([[0.5, 0.25, 0.1]]).log(), length=torch.ones(1, 3, dtype=torch.int64)
        ... )
        >>> metric.update(policy, scores=torch.tensor([[3.0, 1.0, 2.0]]))
        >>> metric.compute()
        tensor(0.1000)
    """

    def __init__(self, *, rank: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank = rank

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` and ``present`` [B, R]."""
        present = all_present(scores, present)
        there, wins = known(scores, present), ALL_PAIRS(scores, present)
        better, worse = wins.sum(dim=-2), wins.sum(dim=-1)
        last = there.sum(dim=-1, keepdim=True) - worse
        here = there & (better < self.rank) & (self.rank <= last)
        self.add(_mean(policy, here), here.any(dim=-1) & rankable(scores, present))


class LikelihoodGap(Mean):
    """The mean over prompts of p of the best responses minus the mean p of all those below them.

    Examples:
        >>> metric = LikelihoodGap()
        >>> policy = ResponseLogProbs(
        ...     sum=torch.tensor([[0.5, 0.25, 0.1]]).log(), length=torch.ones(1, 3, dtype=torch.int64)
        ... )
        >>> metric.update(policy, scores=torch.tensor([[3.0, 1.0, 2.0]]))
        >>> metric.compute()  # 0.5 - 0.35 / 2
        tensor(0.3250)
    """

    def update(self, policy: ResponseLogProbs, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``scores`` and ``present`` [B, R]."""
        present = all_present(scores, present)
        gap = _mean(policy, best(scores, present)) - _mean(policy, below_best(scores, present))
        self.add(gap, rankable(scores, present))


def _mean(policy: ResponseLogProbs, where: Tensor) -> Tensor:
    """Return [B], the mean of p where ``where`` is true."""
    p = torch.where(where, policy.mean.float().exp(), 0.0)
    return p.sum(dim=-1) / where.sum(dim=-1).clamp(min=1)


def best_of_n_scores(rewards: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the mean score of the response with the highest of n rewards, for n from 1 to N, [N].

    The mean over all choices of n of the N responses, and over equal rewards: the k-th lowest reward is the
    highest of n in a share C(k − 1, n − 1)/C(N, n) of them. With the scores of a judge that did not train the
    rewards it is the curve of over-optimisation (Gao et al., arXiv 2210.10760).

    Args:
        rewards: of the N responses to a prompt.
        scores: by another judge.

    Examples:
        >>> best_of_n_scores([0.0, 1.0, 2.0], [1.0, 3.0, 2.0])
        array([2.        , 2.33333333, 2.        ])
    """
    ranked, given = np.asarray(rewards, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    _, groups = np.unique(ranked, return_inverse=True)
    alike = np.bincount(groups, weights=given) / np.bincount(groups)
    ordered, total = alike[np.sort(groups)], len(ranked)
    shares = [
        [math.comb(place, n - 1) / math.comb(total, n) for place in range(total)] for n in range(1, total + 1)
    ]
    return np.asarray(np.array(shares) @ ordered)

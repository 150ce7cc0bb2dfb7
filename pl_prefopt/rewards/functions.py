"""Transforms and combinations of rewards, as functions of tensors.

Wang et al., "Transforming and Combining Rewards for Aligning Large Language Models", arXiv 2402.00742, for
the log-sigmoid; Chakraborty et al., arXiv 2402.08925 (MaxMin-RLHF), for the minimum; Moskovitz et al.,
"Confronting Reward Model Overoptimization with Constrained RLHF", arXiv 2310.04373, for the multipliers.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def log_sigmoid(reward: Tensor, reference: Tensor | float) -> Tensor:
    """Return u = log σ(r − r_ref): the log-probability that a response is better than a good enough one.

    u ≤ 0 and keeps the order; its slope σ(r_ref − r) is largest for poor responses. The optimum of
    E u − γKL is ∝ π_0 σ(r − r_ref)^{1/γ}, and exp Σ_i u_i is the probability that all properties are good.

    Args:
        reward: r.
        reference: r_ref, per prompt or for all.

    Examples:
        >>> log_sigmoid(torch.tensor([1.0, 3.0]), 1.0)
        tensor([-0.6931, -0.1269])
    """
    return logsigmoid(reward - reference)


def normal_level(samples: Tensor, *, quantile: float = 0.85) -> Tensor:
    """Return mean + z·std of the rewards of reference samples: their quantile if they are normal, [...].

    The 85th percentile, z = 1.0364, with the population's standard deviation, as re-implementations of arXiv
    2402.00742 estimate r_ref from a few samples.

    Args:
        samples: rewards of N ≥ 2 samples of the reference policy for each prompt, [..., N]. One sample has a
            standard deviation of 0, and its own reward would be the level.
        quantile: in (0, 1).

    Examples:
        >>> normal_level(torch.tensor([0.0, 2.0]))
        tensor(2.0364)
    """
    deviations = NormalDist().inv_cdf(quantile)
    return samples.mean(dim=-1) + deviations * samples.std(dim=-1, correction=0)


def weighted_mean(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i w_i r_i / Σ_i w_i over the last dimension.

    Examples:
        >>> weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
        tensor(2.)
    """
    return (rewards * weights).sum(dim=-1) / weights.sum()


def harmonic_mean(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i w_i / Σ_i (w_i / r_i) over the last dimension, of rewards above 0; NaN where one is not.

    Between the minimum and the weighted mean; close to the minimum where one reward is near 0.

    Examples:
        >>> harmonic_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor(1.5000)
    """
    valid = rewards > 0
    mean = weights.sum() / (weights / torch.where(valid, rewards, 1.0)).sum(dim=-1)
    return torch.where(valid.all(dim=-1), mean, math.nan)


def minimum(rewards: Tensor) -> Tensor:
    """Return min_c r_c over the last dimension: the reward of the group that is served worst.

    MaxMin-RLHF's paper takes the minimum of expectations over responses, its code that of each response;
    E min ≤ min E, so the latter is pessimistic. This is the latter where rewards are of single responses.

    Examples:
        >>> minimum(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        tensor([-1.,  0.])
    """
    return rewards.amin(dim=-1)


def constrained_sum(rewards: Tensor, penalty: Tensor, multipliers: Tensor) -> Tensor:
    """Return Σ_i λ_i r_i + (N − Σ_i λ_i) p over N rewards: constrained RLHF's mixture of advantages.

    The coefficients always add up to N: what a reward that has met its threshold gives up goes to p, the
    advantage of staying near the reference (minus the KL divergence).

    Args:
        rewards: [..., N].
        penalty: p, [...].
        multipliers: λ, [N].

    Examples:
        >>> constrained_sum(torch.tensor([1.0, 2.0]), torch.tensor(-3.0), torch.tensor([0.5, 0.5]))
        tensor(-1.5000)
    """
    return (rewards * multipliers).sum(dim=-1) + (rewards.shape[-1] - multipliers.sum()) * penalty

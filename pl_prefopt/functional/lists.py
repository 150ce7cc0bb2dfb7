"""Losses over whole lists of responses, and what they are made of.

All functions take tensors [B, R] and a mask of the responses that take part. Responses outside the mask
change nothing, whatever they hold, and get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_cross_entropy(reward: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Return −Σ_i t_i log softmax(r)_i per prompt: the cross-entropy of the list's softmax with a target.

    The gradient with respect to r is softmax(r) − t.

    Args:
        reward: r, [B, R].
        target: t, [B, R], which sums to 1 over each prompt's responses.
        present: bool [B, R], the responses that take part.

    Examples:
        >>> present = torch.ones(1, 2, dtype=torch.bool)
        >>> softmax_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), present)
        tensor([0.1269])
    """
    # A prompt without responses gets harmless rewards: the gradient of its softmax would be NaN.
    empty = ~present.any(dim=-1, keepdim=True)
    rewards = torch.where(present, reward, -torch.inf).masked_fill(empty, 0.0)
    log_shares = torch.where(present, rewards.log_softmax(dim=-1), 0.0)
    return -torch.where(present, target * log_shares, 0.0).sum(dim=-1)


def softmax_over(values: Tensor, present: Tensor) -> Tensor:
    """Return the softmax of ``values`` over each prompt's responses, 0 outside ``present``."""
    empty = ~present.any(dim=-1, keepdim=True)
    filled = torch.where(present, values, -torch.inf).masked_fill(empty, 0.0)
    return torch.where(present, filled.softmax(dim=-1), 0.0)


def pro(log_likelihood: Tensor, temperatures: Tensor, pairs: Tensor) -> Tensor:
    """Return Σ_k −log[exp(s_k T_kk) / (exp(s_k T_kk) + Σ_i exp(s_i T_ki))], T_kk = max_i T_ki, per prompt.

    k runs over the responses with others below them, i over those below k. Song et al. ("PRO"), arXiv
    2306.17492. The authors' code computes log(1e-10 + Σ exp), which overflows; this is a logsumexp.

    Args:
        log_likelihood: s, the mean log-prob per token, [B, R], finite.
        temperatures: T_ki, how much better k is than i, [B, R, R], finite.
        pairs: bool [B, R, R], true where response i is below response k.

    Examples:
        With a gap of 1 between two responses, −log σ(s_1 − s_2):

        >>> pairs = torch.tensor([[[False, True], [False, False]]])
        >>> pro(torch.tensor([[-1.0, -3.0]]), torch.ones(1, 2, 2), pairs)
        tensor([0.1269])
    """
    wins = pairs.any(dim=-1)
    temperatures = torch.where(pairs, temperatures, 0.0)
    own = log_likelihood * temperatures.amax(dim=-1)
    below = torch.where(pairs, log_likelihood.unsqueeze(-2) * temperatures, -torch.inf)
    everyone = torch.cat([own.unsqueeze(-1), below], dim=-1)
    return torch.where(wins, everyone.logsumexp(dim=-1) - own, 0.0).sum(dim=-1)


def win_rates(scores: Tensor, present: Tensor) -> Tensor:
    """Return P̂_i = mean_j σ(s_i − s_j) over a prompt's responses j, i itself (½) included; 0 where absent.

    SPPO (Wu et al., arXiv 2405.00675) estimates win rates from a judge's scores in this way.

    Args:
        scores: s, [B, R], in logits of the judge.
        present: bool [B, R], the responses that take part.

    Examples:
        >>> win_rates(torch.tensor([[2.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
        tensor([[0.6904, 0.3096]])
    """
    filled = torch.where(present, scores, 0.0)
    both = present.unsqueeze(-1) & present.unsqueeze(-2)
    wins = torch.where(both, (filled.unsqueeze(-1) - filled.unsqueeze(-2)).sigmoid(), 0.0)
    return wins.sum(dim=-1) / present.sum(dim=-1, keepdim=True).clamp(min=1)


def swap_gain(reward: Tensor, scores: Tensor, present: Tensor) -> Tensor:
    """Return λ_ij = |2^s_i − 2^s_j| · |1/log(1 + ρ_i) − 1/log(1 + ρ_j)|, without gradient.

    ρ is the rank of a response by its current reward, 1 for the highest: λ_ij is how much swapping i and j
    changes the list's discounted cumulative gain. It is LambdaLoss's weight (Liu et al., "LiPO", arXiv
    2402.01878, eq. 8). Rewards that are exactly equal, as all log-ratios are before the first step, have no
    ranks; the mean over all orders of the tied responses is taken, so that the order of the data decides
    nothing.

    Args:
        reward: [B, R].
        scores: s, [B, R].
        present: bool [B, R], the responses that take part.

    Returns:
        [B, R, R], 0 where a response is absent.

    Examples:
        Two responses with the labels 1 and 0: 1/log 2 − 1/log 3, whatever their order.

        >>> swap_gain(torch.tensor([[0.3, 0.7]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]))
        tensor([[[0.0000, 0.5325],
                 [0.5325, 0.0000]]])
    """
    rewards = torch.where(present, reward.detach(), -torch.inf)
    both = present.unsqueeze(-1) & present.unsqueeze(-2)
    gains = torch.where(present, scores, 0.0).exp2()
    gap = (gains.unsqueeze(-1) - gains.unsqueeze(-2)).abs()

    above = (rewards.unsqueeze(-2) > rewards.unsqueeze(-1)).sum(dim=-1)  # ranks above the response's group
    tied = (rewards.unsqueeze(-2) == rewards.unsqueeze(-1)).sum(dim=-1)
    ranks = torch.arange(1, reward.shape[-1] + 1, device=reward.device, dtype=reward.dtype)
    discounts = 1 / ranks.log1p()
    total = _within(discounts, above, tied)
    mean = total / tied
    # Σ_{a<b} (D_a − D_b) over a group of m ranks, the k-th of them (from 0) counted m − 1 − 2k times.
    places = _within(discounts * ranks, above, tied) - (above + 1) * total
    spread = ((tied - 1) * total - 2 * places) * 2 / (tied * (tied - 1)).clamp(min=1)
    same = rewards.unsqueeze(-2) == rewards.unsqueeze(-1)
    change = torch.where(same, spread.unsqueeze(-1), (mean.unsqueeze(-1) - mean.unsqueeze(-2)).abs())
    return torch.where(both, gap * change, 0.0)


def _within(values: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """Return the sum of ``values`` [R] from ``start`` on, ``count`` of them, for each response."""
    sums = torch.cat([values.new_zeros(1), values.cumsum(dim=0)])
    return sums[start + count] - sums[start]

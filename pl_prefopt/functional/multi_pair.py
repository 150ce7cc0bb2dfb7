"""MPPO's losses over all responses to a prompt: one loss per prompt, for any number of responses.

Lyu et al., arXiv 2412.15244 (COLING 2025). What is compared is the mean likelihood of a token,

    p(y) = Π_t π_θ(y_t|x, y_<t)^(1/|y|) = exp ℓ̄(y),

a probability and not its logarithm, without a reference, a β or a margin. Since p lies in (0, 1], every
difference lies in (−1, 1), and each gradient with respect to ℓ̄ has the factor p: unlikely responses get
almost no gradient.

Every function takes ``log_likelihood`` ℓ̄, ``scores`` and ``present``, all [B, R], with NaN for unknown
scores. Responses that are absent or have an unknown score are ignored. ``temperature`` T is this
project's extension: p becomes exp(ℓ̄/T); 1 is the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.pairing import ALL_PAIRS, BEST_AGAINST_EACH


class ListLoss(NamedTuple):
    """What a loss over all responses to a prompt returns.

    Attributes:
        loss: [B], one loss per prompt, unreduced; 0 where nothing can be compared.
        counted: bool [B], false where all known scores of a prompt are equal, or fewer than two are known.
        reward: [B, R], p of every present response, detached; 0 where absent.
    """

    loss: Tensor
    counted: Tensor
    reward: Tensor


def likelihood(log_likelihood: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Return p = exp(ℓ̄/T), and 0 without a gradient where ``present`` is false, whatever stands there."""
    filled = torch.where(present, log_likelihood, 0.0)
    return torch.where(present, torch.exp(filled / temperature), 0.0)


def pair_single(
    log_likelihood: Tensor, scores: Tensor, present: Tensor, drawn: Tensor, *, temperature: float = 1.0
) -> ListLoss:
    """Pair-Single: −log σ(p_w − p_l), l sampled from the responses below the best; eq. 8.

    Its values lie between softplus(−1) = 0.313 and softplus(1) = 1.313.

    Args:
        log_likelihood: ℓ̄ [B, R].
        scores: [B, R], higher is better.
        present: bool [B, R].
        drawn: bool [B, R], l of each prompt; it counts only where its score is below the best.
        temperature: T.

    Returns:
        Losses, and rewards p.
    """
    pairs = BEST_AGAINST_EACH(scores, present) & drawn.unsqueeze(-2)
    return _best_against(log_likelihood, pairs, present, temperature)


def pair_mns(
    log_likelihood: Tensor, scores: Tensor, present: Tensor, *, temperature: float = 1.0
) -> ListLoss:
    """Pair-MNS, many negatives one by one: −Σ_i log σ(p_w − p_{l_i}); eq. 9, a sum and not a mean.

    Args:
        log_likelihood: ℓ̄ [B, R].
        scores: [B, R], higher is better. The loss is the mean over best responses that tie.
        present: bool [B, R].
        temperature: T.

    Returns:
        Losses, and rewards p.
    """
    return _best_against(log_likelihood, BEST_AGAINST_EACH(scores, present), present, temperature)


def pair_mnm(
    log_likelihood: Tensor, scores: Tensor, present: Tensor, *, temperature: float = 1.0
) -> ListLoss:
    """Pair-MNM, many negatives merged: −log σ(N p_w − Σ_i p_{l_i}); eq. 10.

    With respect to p all negatives get the same gradient.

    Args:
        log_likelihood: ℓ̄ [B, R].
        scores: [B, R], higher is better. The loss is the mean over best responses that tie.
        present: bool [B, R].
        temperature: T.

    Returns:
        Losses, and rewards p.
    """
    pairs = BEST_AGAINST_EACH(scores, present)
    p = likelihood(log_likelihood, present, temperature)
    margins = torch.where(pairs, p.unsqueeze(-1) - p.unsqueeze(-2), 0.0).sum(dim=-1)
    wins = pairs.any(dim=-1)
    total = torch.where(wins, -logsigmoid(margins), 0.0).sum(dim=-1)
    return _counted(total / wins.sum(dim=-1).clamp(min=1), wins.any(dim=-1), p)


def pair_mcs(
    log_likelihood: Tensor,
    scores: Tensor,
    present: Tensor,
    *,
    temperature: float = 1.0,
    among: Tensor | None = None,
) -> ListLoss:
    """Pair-MCS, many comparisons one by one: −Σ_{s_i > s_j} log σ(p_i − p_j); eq. 11, a sum over all pairs.

    Args:
        log_likelihood: ℓ̄ [B, R].
        scores: [B, R], higher is better. Responses with equal scores make no pair.
        present: bool [B, R].
        temperature: T.
        among: bool [B, R, R], the pairs to take, winner first; all of them by default.

    Returns:
        Losses, and rewards p.
    """
    wins = ALL_PAIRS(scores, present) if among is None else ALL_PAIRS(scores, present) & among
    p = likelihood(log_likelihood, present, temperature)
    losses = -logsigmoid(p.unsqueeze(-1) - p.unsqueeze(-2))
    total = torch.where(wins, losses, 0.0).sum(dim=(-2, -1))
    return _counted(total, wins.any(dim=-1).any(dim=-1), p)


def pair_mcm(
    log_likelihood: Tensor,
    scores: Tensor,
    present: Tensor,
    *,
    temperature: float = 1.0,
    among: Tensor | None = None,
) -> ListLoss:
    """Pair-MCM, many comparisons merged: −log σ(Σ_{s_i > s_j} (p_i − p_j)); eq. 12.

    The sum is Σ_i c_i p_i with c_i the pairs that i wins minus those that it loses: 3, 1, −1, −3 for four
    responses. All but the lower half are therefore promoted, the runner-up of four included, and the middle
    one of three learns nothing.

    Args:
        log_likelihood: ℓ̄ [B, R].
        scores: [B, R], higher is better. Responses with equal scores make no pair.
        present: bool [B, R].
        temperature: T.
        among: bool [B, R, R], the pairs to take, winner first; all of them by default.

    Returns:
        Losses, and rewards p.
    """
    wins = ALL_PAIRS(scores, present) if among is None else ALL_PAIRS(scores, present) & among
    p = likelihood(log_likelihood, present, temperature)
    weights = wins.sum(dim=-1) - wins.sum(dim=-2)
    return _counted(-logsigmoid((weights * p).sum(dim=-1)), wins.any(dim=-1).any(dim=-1), p)


def list_mle(
    log_likelihood: Tensor, scores: Tensor, present: Tensor, *, temperature: float = 1.0
) -> ListLoss:
    """List-MLE: −Σ_i log(exp p_i / Σ_{s_j ≤ s_i} exp p_j) over the responses from best to worst; eq. 13.

    Args:
        log_likelihood: ℓ̄ [B, R].
        scores: [B, R], higher is better. Of responses that tie, none is in the other's sum.
        present: bool [B, R].
        temperature: T.

    Returns:
        Losses, and rewards p.
    """
    pairs = ALL_PAIRS(scores, present)
    p = likelihood(log_likelihood, present, temperature)
    below = torch.where(pairs, p.unsqueeze(-2).exp(), 0.0).sum(dim=-1)  # p ≤ 1: no shift is needed
    losses = torch.where(pairs.any(dim=-1), (p.exp() + below).log() - p, 0.0)
    return _counted(losses.sum(dim=-1), pairs.any(dim=-1).any(dim=-1), p)


def _best_against(log_likelihood: Tensor, pairs: Tensor, present: Tensor, temperature: float) -> ListLoss:
    p = likelihood(log_likelihood, present, temperature)
    losses = torch.where(pairs, -logsigmoid(p.unsqueeze(-1) - p.unsqueeze(-2)), 0.0).sum(dim=-1)
    wins = pairs.any(dim=-1)
    return _counted(losses.sum(dim=-1) / wins.sum(dim=-1).clamp(min=1), wins.any(dim=-1), p)


def _counted(loss: Tensor, counted: Tensor, p: Tensor) -> ListLoss:
    return ListLoss(torch.where(counted, loss, 0.0), counted, p.detach())

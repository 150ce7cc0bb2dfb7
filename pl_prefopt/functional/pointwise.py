"""MPPO's losses of single responses: each mean likelihood is regressed on its score.

Both functions take ℓ̄ = log π_θ(y|x) / |y| and a score in (0, 1], of any one shape. p = exp(ℓ̄/T) is the
mean likelihood of a token; the temperature T is this project's extension, and 1 is the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.functional.numerics import log1mexp
from pl_prefopt.functional.unpaired import UnpairedLoss


def point_ce(log_likelihood: Tensor, score: Tensor, *, temperature: float = 1.0) -> UnpairedLoss:
    """Point-CE, cross-entropy of the likelihood with the score: −s log p − (1 − s) log(1 − p).

    Lyu et al., arXiv 2412.15244, eq. 6. Its minimum is at p = s; with s = 1 it is the negative
    log-likelihood per token. With respect to log p its gradient is −s + (1 − s) p/(1 − p), which at p = 1 is
    −1 for s = 1 and large and positive (∞ in theory, see ``log1mexp``) for any s below.

    Args:
        log_likelihood: ℓ̄, the mean log-prob per token.
        score: s, in the same shape.
        temperature: T.

    Returns:
        Losses and rewards p.
    """
    log_p = log_likelihood / temperature
    loss = -score * log_p - (1 - score) * log1mexp(log_p)
    return UnpairedLoss(loss, log_p.detach().exp())


def point_mse(log_likelihood: Tensor, score: Tensor, *, temperature: float = 1.0) -> UnpairedLoss:
    """Point-MSE: (s − p)².

    Lyu et al., arXiv 2412.15244, eq. 7, whose printed minus sign would maximise the error and is a misprint.

    Args:
        log_likelihood: ℓ̄, the mean log-prob per token.
        score: s, in the same shape.
        temperature: T.

    Returns:
        Losses and rewards p.
    """
    log_p = log_likelihood / temperature
    # Near p = 1 the small 1 − p would be lost in s − p. Far from it 1 − p would lose the digits of a small p.
    near = log_p > -math.log(2.0)
    error = torch.where(near, (score - 1.0) - torch.expm1(log_p), score - torch.exp(log_p))
    return UnpairedLoss(error.square(), log_p.detach().exp())

"""The derivatives f′(u) of four f-divergences D_f(π_θ ‖ π_ref) = E_{π_ref}[f(u)], u = π_θ / π_ref.

After Wang et al., arXiv 2309.16240. Each takes a = log u and returns f′(u) − f′(1): the constant
leaves every loss of a difference as it is, and makes the reward of an unchanged policy 0. All are strictly
increasing in a and finite with finite gradients for |a| up to 1e3 and beyond.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.functional.numerics import tangent_expm1


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """Return log u, of f(u) = u log u. With it f-DPO is DPO."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """Return 1 − 1/u, of f(u) = −log u.

    Below a = −30, where 1/u could overflow, the tangent at −30 is used instead.
    """
    return -tangent_expm1(-log_ratio)


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """Return log(2u/(1 + u)), of f(u) = u log u − (u + 1) log((u + 1)/2). It never exceeds log 2."""
    return logsigmoid(log_ratio) + math.log(2.0)


def alpha_divergence(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """Return (1 − u^−α)/α, of f(u) = (u^(1−α) − (1 − α)u − α) / (α(α − 1)).

    It runs from the reverse KL (α → 0) to the forward KL (α → 1). TRL names the exponent otherwise: its
    ``f_alpha_divergence_coef`` is 1 − α. Where −αa exceeds 30, the tangent is used instead.
    """
    return -tangent_expm1(-alpha * log_ratio) / alpha

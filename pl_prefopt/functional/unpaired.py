"""Losses of single responses that are known to be desirable or not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class UnpairedLoss(NamedTuple):
    """What an unpaired loss returns.

    Attributes:
        loss: one loss per response, unreduced.
        reward: the implicit reward, detached, in the same shape.
    """

    loss: Tensor
    reward: Tensor


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> UnpairedLoss:
    """Kahneman-Tversky optimisation: λ_D σ(β(z − a)) if desirable, λ_U σ(β(a − z)) if not.

    Ethayarajh et al., arXiv 2402.01306, eq. 7, with a = log π_θ(y|x) − log π_ref(y|x); λ(1 − σ(t)) is
    written as λσ(−t), which keeps its precision where σ(t) rounds to 1.

    Args:
        policy: log π_θ(y|x), any shape.
        reference: log π_ref(y|x), the same shape.
        desirable: bool, the same shape.
        kl: z, the reference point: an estimate of KL(π_θ ‖ π_ref), without gradient, scalar or broadcastable.
        beta: β; the greater, the sooner the loss saturates.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.

    Returns:
        Losses in [0, λ], and rewards βa.
    """
    log_ratio = policy - reference
    advantage = beta * (log_ratio - kl)
    loss = torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-advantage),
        undesirable_weight * torch.sigmoid(advantage),
    )
    return UnpairedLoss(loss, beta * log_ratio.detach())

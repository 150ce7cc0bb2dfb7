"""Links: the loss of a comparison, as a function of the margin z = r_w − r_l of two implicit rewards.

An offset, such as SimPO's γ, has been subtracted from z before. All are unreduced and take any shape.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid


def logistic(margin: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return −(1 − ε) log σ(z) − ε log σ(−z): Bradley-Terry's likelihood, with labels smoothed by ε.

    With ε = 0 the loss of DPO (Rafailov et al., arXiv 2305.18290, eq. 7); with ε > 0 that of conservative DPO
    (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO"), whose minimum is at the
    finite z = logit(1 − ε).

    Args:
        margin: z.
        label_smoothing: ε in [0, 0.5).

    Examples:
        >>> import torch
        >>> logistic(torch.tensor([0.0, 2.0]))
        tensor([0.6931, 0.1269])
        >>> logistic(torch.tensor([2.0]), label_smoothing=0.1)
        tensor([0.3269])
    """
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def squared(margin: Tensor, *, beta: float) -> Tensor:
    """Return ((z − ½) / β)²: IPO's loss, whose minimum is at the margin z = ½.

    Azar et al., arXiv 2310.12036, eq. 17, prints (h − 1/(2β))² for the margin h = z/β of log-ratios.

    Args:
        margin: z.
        beta: β, the scale of the rewards.

    Examples:
        >>> import torch
        >>> squared(torch.tensor([0.0, 0.5]), beta=0.5)
        tensor([1., 0.])
    """
    return ((margin - 0.5) / beta).square()


def hinge(margin: Tensor, *, target: float = 1.0) -> Tensor:
    """Return max(0, δ − z): no gradient from margins above δ (SLiC, Zhao et al., arXiv 2305.10425).

    Args:
        margin: z.
        target: δ.

    Examples:
        >>> import torch
        >>> hinge(torch.tensor([-1.0, 3.0])), hinge(torch.tensor([-1.0, 3.0]), target=5.0)
        (tensor([2., 0.]), tensor([6., 2.]))
    """
    return (target - margin).relu()


def robust(margin: Tensor, *, flip_rate: float) -> Tensor:
    """Return −[(1 − ε) log σ(z) − ε log σ(−z)] / (1 − 2ε): unbiased under labels flipped at the rate ε.

    Chowdhury et al., arXiv 2403.00409. It is computed as −log σ(z) − zε/(1 − 2ε), which is the same because
    log σ(−z) = log σ(z) − z, and in which nothing large cancels. It may be negative.

    Args:
        margin: z.
        flip_rate: ε in [0, 0.5).

    Examples:
        >>> import torch
        >>> robust(torch.tensor([0.0, 4.0]), flip_rate=0.25)
        tensor([ 0.6931, -1.9819])
    """
    return -logsigmoid(margin) - flip_rate / (1 - 2 * flip_rate) * margin


def exo(margin: Tensor, *, epsilon: float) -> Tensor:
    """Return KL(q ‖ (1 − ε, ε)) = q log[q / (1 − ε)] + (1 − q) log[(1 − q) / ε] with q = σ(z).

    Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856, eq. 16.
    The gradient is q(1 − q)(z − logit(1 − ε)): 0 at the minimum z = logit(1 − ε), and vanishing for pairs
    that are far from it on either side.

    Args:
        margin: z.
        epsilon: ε in (0, 0.5).

    Examples:
        At z = 0 the value is −log 2 − ½ log[ε(1 − ε)].

        >>> import torch
        >>> exo(torch.tensor([0.0, 6.9067548]), epsilon=1e-3).round(decimals=4)
        tensor([2.7612, 0.0000])
    """
    q, log_q, log_rest = margin.sigmoid(), logsigmoid(margin), logsigmoid(-margin)
    return q * (log_q - math.log1p(-epsilon)) + (-margin).sigmoid() * (log_rest - math.log(epsilon))


def discopop(margin: Tensor, *, tau: float) -> Tensor:
    """Return −(1 − m) log σ(z) + m exp(−z) with m = σ(z/τ): the log-ratio modulated loss of DiscoPOP.

    Lu et al., "Discovering Preference Optimization Algorithms with and for Large Language Models",
    arXiv 2406.08414, eq. 5. The loss is not monotonous. For τ = 0.05 it has a minimum of 0.785924 at
    z = −0.11857 and a maximum of 0.87829 at z = 0.07201, and rises at z = 0, where training begins. m exp(−z)
    is computed as exp(log σ(z/τ) − z), which is finite for all z if τ < 1.

    Args:
        margin: z.
        tau: τ in (0, 1).

    Examples:
        At z = 0 the value is ½ log 2 + ½.

        >>> import torch
        >>> discopop(torch.tensor([0.0, 1.0, -1000.0]), tau=0.05)
        tensor([8.4657e-01, 3.6788e-01, 1.0000e+03])
    """
    modulation = margin / tau
    return -(-modulation).sigmoid() * logsigmoid(margin) + (logsigmoid(modulation) - margin).exp()

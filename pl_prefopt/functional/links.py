"""Links: the loss of a comparison, as a function of the margin z = r_w − r_l of two implicit rewards.

An offset, such as SimPO's γ, has been subtracted from z before. All are unreduced and take any shape.
"""

from __future__ import annotations

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


def hinge(margin: Tensor) -> Tensor:
    """Return max(0, 1 − z): no gradient from margins above 1 (SLiC, Zhao et al., arXiv 2305.10425).

    Args:
        margin: z.

    Examples:
        >>> import torch
        >>> hinge(torch.tensor([-1.0, 3.0]))
        tensor([2., 0.])
    """
    return (1 - margin).relu()


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

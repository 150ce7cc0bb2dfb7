"""Losses of a pair that depend on both rewards r_w and r_l, not on their difference alone.

Each anchors the rewards to the reference, where r = 0, so that the chosen response's likelihood matters by
itself. All are unreduced; the two arguments broadcast.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def nca_pair(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l): noise contrastive alignment of a pair.

    Chen et al., arXiv 2402.05369. The gradient in r_w is 3σ(r_w)/2 − 1, which is 0 at r_w = log 2.

    Args:
        chosen: r_w.
        rejected: r_l.

    Examples:
        2 log 2 where policy and reference agree:

        >>> import torch
        >>> nca_pair(torch.zeros(1), torch.zeros(1))
        tensor([1.3863])
    """
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return −log σ(r_w) − log σ(−r_l): binary classification of both responses, without a shift δ.

    Jung et al., arXiv 2404.04656, on pairs as in TRL. It is never below DPO's loss −log σ(r_w − r_l).

    Args:
        chosen: r_w.
        rejected: r_l.

    Examples:
        2 log 2 where policy and reference agree:

        >>> import torch
        >>> bco_pair(torch.zeros(1), torch.zeros(1))
        tensor([1.3863])
    """
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def sppo_hard(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return ((r_w − ½)/β)² + ((r_l + ½)/β)²: SPPO with win rates of 1 and 0.

    Wu et al., arXiv 2405.00675, eq. 4.7, which prints (a_w − 1/(2β))² + (a_l + 1/(2β))² for the log-ratios a
    = r/β. It equals ½(h − 1/β)² + ½(a_w + a_l)² with h = a_w − a_l: IPO's loss with twice its target margin,
    and a pull of the mean log-ratio to 0.

    Args:
        chosen: r_w.
        rejected: r_l.
        beta: β, the scale of the rewards; the paper's 1/η.

    Examples:
        1/(2β²) where policy and reference agree:

        >>> import torch
        >>> sppo_hard(torch.zeros(1), torch.zeros(1), beta=0.1)
        tensor([50.])
    """
    return ((chosen - 0.5) / beta).square() + ((rejected + 0.5) / beta).square()


def apo_zero(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return 1 − σ(r_w) + σ(r_l), in (0, 2): anchored preference optimisation, chosen up and rejected down.

    D'Oosterlinck et al., arXiv 2408.06266, eq. 7. Written as σ(−r_w) + σ(r_l).

    Args:
        chosen: r_w.
        rejected: r_l.

    Examples:
        1 where policy and reference agree:

        >>> import torch
        >>> apo_zero(torch.zeros(1), torch.zeros(1))
        tensor([1.])
    """
    return (-chosen).sigmoid() + rejected.sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return σ(r_w) + 1 − σ(r_w − r_l): anchored preference optimisation, both down, the rejected further.

    D'Oosterlinck et al., arXiv 2408.06266, eq. 8. The chosen response has no gradient where policy and
    reference agree, and is pushed down exactly if |r_w| < |r_w − r_l|.

    Args:
        chosen: r_w.
        rejected: r_l.

    Examples:
        1 where policy and reference agree:

        >>> import torch
        >>> apo_down(torch.zeros(1), torch.zeros(1))
        tensor([1.])
    """
    return chosen.sigmoid() + (rejected - chosen).sigmoid()

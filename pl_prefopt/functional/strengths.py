"""The strength of preferences, measured by an ensemble of reward models, and what follows from it.

Wang et al., "Secrets of RLHF in Large Language Models Part II: Reward Modeling", arXiv 2401.06080.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.functional import links


class Strength(NamedTuple):
    """The margins of M reward models on each pair.

    Attributes:
        mean: û, [...]; below 0 where the ensemble prefers the rejected response.
        std: σ̂, [...], the population standard deviation (1/M).
    """

    mean: Tensor
    std: Tensor


def preference_strength(chosen: Tensor, rejected: Tensor) -> Strength:
    """Return û = mean_m (r_m(y_w) − r_m(y_l)) and σ̂ over M reward models, of which the paper has ten.

    Args:
        chosen: r_m(y_w), [M, ...].
        rejected: r_m(y_l), [M, ...].

    Examples:
        >>> preference_strength(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
        Strength(mean=tensor(1.), std=tensor(1.))
    """
    margins = chosen - rejected
    return Strength(margins.mean(dim=0), margins.std(dim=0, correction=0))


def weakest(strength: Tensor, *, share: float) -> Tensor:
    """Return bool [N], true for the ``share`` of pairs with the lowest strength: the labels to flip.

    The count is rounded to the nearest number of pairs; of equal strengths the first in order are taken. The
    paper flips the lowest 20 % of HH.

    Args:
        strength: û, [N].
        share: in [0, 1].

    Examples:
        >>> weakest(torch.tensor([0.5, -1.0, 2.0, 0.1]), share=0.25)
        tensor([False,  True, False, False])
    """
    count = round(share * len(strength))
    chosen = torch.zeros_like(strength, dtype=torch.bool)
    chosen[strength.argsort(stable=True)[:count]] = True
    return chosen


def flip(chosen: Tensor, rejected: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides of each pair, exchanged where ``flipped``; twice is the identity.

    Examples:
        >>> flip(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([True, False]))
        (tensor([3, 2]), tensor([1, 4]))
    """
    return torch.where(flipped, rejected, chosen), torch.where(flipped, chosen, rejected)


def adaptive_margin(margin: Tensor, strength: Tensor) -> Tensor:
    """Return −log σ(d − û): stronger preferences must win by more.

    Examples:
        >>> adaptive_margin(torch.tensor([2.0]), torch.tensor([2.0]))
        tensor([0.6931])
    """
    return -logsigmoid(margin - strength)


def smoothed_where_doubtful(margin: Tensor, strength: Tensor, *, label_smoothing: float) -> Tensor:
    """Return −(1 − α) log σ(d) − α log σ(−d) where û < 0, and −log σ(d) elsewhere.

    Args:
        margin: d.
        strength: û.
        label_smoothing: α.

    Examples:
        >>> smoothed_where_doubtful(torch.tensor([2.0, 2.0]), torch.tensor([1.0, -1.0]), label_smoothing=0.1)
        tensor([0.1269, 0.3269])
    """
    plain = links.logistic(margin)
    return torch.where(strength < 0, links.logistic(margin, label_smoothing=label_smoothing), plain)

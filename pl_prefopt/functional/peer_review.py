"""Collaborative reward modelling (CRM): the pairs that two models pass to each other, and their order.

Each model keeps for the *other* the pairs with the largest margins in its own judgement; a small or negative
margin is read as a wrong label. For the logistic loss these are the pairs with the smallest loss. "Two Minds
Better Than One: Collaborative Reward Modeling for LLM Alignment", arXiv 2505.10597. The margins may be those
of reward models, or of the implicit rewards of two policies. A schedule of the keep rate was not found.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Reviewed(NamedTuple):
    """Which pairs two models are trained on, bool [N] each.

    Attributes:
        first: the pairs of the first model, chosen by the second.
        second: the pairs of the second model, chosen by the first.
    """

    first: Tensor
    second: Tensor


def keep_largest(margins: Tensor, *, keep_rate: float) -> Tensor:
    """Return bool [N], true for the ``keep_rate`` of pairs with the largest margins.

    The number of pairs is rounded to the nearest, and is at least 1; of equal margins the first are kept. A
    margin of NaN, of a pair without one, is never kept and not counted.

    Args:
        margins: d, [N], detached or not.
        keep_rate: 1 − η in (0, 1], η the expected share of wrong labels.

    Examples:
        >>> keep_largest(torch.tensor([0.5, -1.0, 2.0, 0.1]), keep_rate=0.5)
        tensor([ True, False,  True, False])
    """
    known = ~margins.isnan()
    total = int(known.sum())
    count = min(total, max(1, round(keep_rate * total)))
    order = torch.where(known, margins.detach(), -torch.inf).argsort(descending=True, stable=True)
    kept = torch.zeros_like(known)
    kept[order[:count]] = True
    return kept & known


def review(first: Tensor, second: Tensor, *, keep_rate: float) -> Reviewed:
    """Return the pairs that each of two models is trained on: those that the other keeps.

    With a keep rate of 1 each model is trained on all of its pairs; exchanging the models exchanges the
    result.

    Args:
        first: margins of the first model, [N].
        second: margins of the second model on the same pairs, [N].
        keep_rate: 1 − η in (0, 1].

    Examples:
        >>> review(torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 1.0]), keep_rate=0.5)
        Reviewed(first=tensor([False,  True]), second=tensor([ True, False]))
    """
    return Reviewed(
        first=keep_largest(second, keep_rate=keep_rate), second=keep_largest(first, keep_rate=keep_rate)
    )


def easy_to_hard(margins: Tensor) -> Tensor:
    """Return the order of an epoch, int64 [N]: pairs by decreasing margin, equal ones as they are.

    Examples:
        >>> easy_to_hard(torch.tensor([0.5, -1.0, 2.0]))
        tensor([2, 0, 1])
    """
    return margins.detach().nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)

"""Groups of users with a reward of their own each: the hard EM of MaxMin-RLHF.

Users are assigned, and not pairs. Chakraborty et al., "MaxMin-RLHF: Alignment with Diverse Human
Preferences", arXiv 2402.08925.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def first_groups(users: int, groups: int) -> Tensor:
    """Return the groups before the first E-step: user u is in group u mod C, [U].

    Examples:
        >>> first_groups(5, 2)
        tensor([0, 1, 0, 1, 0])
    """
    return torch.arange(users) % groups


def log_likelihoods(margins: Tensor, users: Tensor, count: int) -> Tensor:
    """Return Σ log σ(r_c(y_w) − r_c(y_l)) over the pairs of each user, under each group's reward: [U, C].

    (The authors' code takes the log of a quotient of exponentials, which is NaN for large rewards.)

    Args:
        margins: r_c(y_w) − r_c(y_l), [N, C].
        users: int64 [N], the user of each pair.
        count: U.

    Examples:
        >>> log_likelihoods(torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.tensor([1, 1]), 2)
        tensor([[ 0.0000,  0.0000],
                [-1.3863, -0.2539]])
    """
    sums = margins.new_zeros(count, margins.shape[-1])
    return sums.index_add(0, users, logsigmoid(margins))


def best_groups(likelihoods: Tensor) -> Tensor:
    """Return argmax_c of each user's log-likelihood [U, C], the first of groups that tie: the E-step.

    Examples:
        >>> best_groups(torch.tensor([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0]]))
        tensor([0, 1, 0])
    """
    return (likelihoods == likelihoods.amax(dim=-1, keepdim=True)).long().argmax(dim=-1)


def reseed_empty(assigned: Tensor, likelihoods: Tensor, pairs: Tensor) -> Tensor:
    """Return the assignment with a user in each group: an empty group gets the user that fits its own worst.

    The fit is the user's mean log-likelihood per pair in the group it was assigned to, and the user is taken
    from a group with others. The authors' code leaves empty groups empty, where they get no gradient and
    stay so.

    Args:
        assigned: int64 [U].
        likelihoods: [U, C] log-likelihoods.
        pairs: int64 [U], the number of pairs of each user; users without any are not moved.

    Examples:
        >>> likelihoods = torch.tensor([[-1.0, -9.0], [-3.0, -9.0], [-2.0, -9.0]])
        >>> reseed_empty(torch.tensor([0, 0, 0]), likelihoods, torch.tensor([1, 1, 1]))
        tensor([0, 1, 0])
    """
    assigned = assigned.clone()
    groups = likelihoods.shape[1]
    fit = likelihoods.gather(1, assigned.unsqueeze(1)).squeeze(1) / pairs.clamp(min=1)
    for group in range(groups):
        sizes = assigned.bincount(minlength=groups)
        movable = (sizes[assigned] > 1) & (pairs > 0)
        if sizes[group] or not movable.any():
            continue
        assigned[torch.where(movable, fit, torch.inf).argmin()] = group
    return assigned

"""Structures as settings: which responses to a prompt are compared, and how comparisons become one loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pl_prefopt.objectives.links import Link
from pl_prefopt.pairing import ALL_PAIRS, BEST_AGAINST_EACH, Pairing


class Structure(ABC):
    """How the margins of a prompt's pairs become its loss. Winners lie by row and losers by column."""

    pairing: Pairing
    separate: ClassVar[bool] = True
    """Whether each pair has a loss of its own, which a weight can multiply."""

    @abstractmethod
    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        """Return the loss of each prompt, [B], 0 where it has no pair.

        Args:
            margins: z of each pair, [B, R, R], finite also where there is none.
            pairs: bool [B, R, R].
            weights: of each pair's loss, broadcastable to [B, R, R], without gradient.
            link: the loss of a margin.
        """


@dataclass(frozen=True)
class MeanOfPairs(Structure):
    """The mean loss over the pairs: prompts are weighted equally, however many responses they have.

    Args:
        pairing: which responses are compared.

    Examples:
        >>> from pl_prefopt.objectives.links import HingeLink
        >>> rewards = torch.tensor([[2.0, 1.5, 0.0]])
        >>> margins = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
        >>> pairs = ALL_PAIRS(torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
        >>> MeanOfPairs()(margins, pairs, torch.ones(()), HingeLink())  # of 0.5, 0 and 0
        tensor([0.1667])
    """

    pairing: Pairing = ALL_PAIRS

    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        return mean_over(pairs, weights * link(margins))


@dataclass(frozen=True)
class SumOfPairs(Structure):
    """The sum of losses over the pairs.

    Args:
        pairing: which responses are compared.
    """

    pairing: Pairing = ALL_PAIRS

    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        return torch.where(pairs, weights * link(margins), 0.0).sum(dim=(-2, -1))


@dataclass(frozen=True)
class MergedPairs(Structure):
    """One loss for the sum of all margins.

    Args:
        pairing: which responses are compared.
    """

    separate = False
    pairing: Pairing = ALL_PAIRS

    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        total = torch.where(pairs, margins, 0.0).sum(dim=(-2, -1))
        return torch.where(pairs.any(dim=-1).any(dim=-1), link(total), 0.0)


@dataclass(frozen=True)
class SumPerWinner(Structure):
    """The sum of losses over a winner's pairs, averaged over the winners of a prompt.

    Args:
        pairing: which responses are compared; by default the best one with each of the others. Several
            winners, then, are best responses that tie.
    """

    pairing: Pairing = BEST_AGAINST_EACH

    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        losses = torch.where(pairs, weights * link(margins), 0.0).sum(dim=-1)
        return _mean_of_winners(losses, pairs)


@dataclass(frozen=True)
class MergedPerWinner(Structure):
    """One loss for the sum of a winner's margins, averaged over the winners of a prompt.

    Args:
        pairing: which responses are compared; by default the best one with each of the others. Several
            winners, then, are best responses that tie.
    """

    separate = False
    pairing: Pairing = BEST_AGAINST_EACH

    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        total = torch.where(pairs, margins, 0.0).sum(dim=-1)
        return _mean_of_winners(torch.where(pairs.any(dim=-1), link(total), 0.0), pairs)


@dataclass(frozen=True)
class PlackettLuce(Structure):
    """Each winner against all its losers at once: Σ_w link(−log Σ_l exp(−z_wl)), the soft minimum of margins.

    With the logistic link a winner's loss is −log[exp r_w / (exp r_w + Σ_l exp r_l)]. Over all pairs that is
    the likelihood of the ranking (Plackett-Luce); of the best against the others, softmax-DPO. Tied responses
    are not compared with each other.

    Args:
        pairing: which responses are compared.
    """

    separate = False
    pairing: Pairing = ALL_PAIRS

    def __call__(self, margins: Tensor, pairs: Tensor, weights: Tensor, link: Link) -> Tensor:
        wins = pairs.any(dim=-1)
        # A row without losers gets a harmless margin: the gradient of an empty logsumexp is NaN.
        nearest = torch.where(wins.unsqueeze(-1) & ~pairs, -torch.inf, -margins)
        soft_minimum = -torch.where(wins.unsqueeze(-1), nearest, 0.0).logsumexp(dim=-1)
        return torch.where(wins, link(soft_minimum), 0.0).sum(dim=-1)


def _mean_of_winners(losses: Tensor, pairs: Tensor) -> Tensor:
    """Return the mean of ``losses`` [B, R], 0 where a response wins no pair, over those that do."""
    return losses.sum(dim=-1) / pairs.any(dim=-1).sum(dim=-1).clamp(min=1)


def mean_over(pairs: Tensor, values: Tensor) -> Tensor:
    """Return the mean of ``values``, broadcastable to [B, R, R], over each prompt's pairs; 0 without any."""
    total = torch.where(pairs, values, 0.0).sum(dim=(-2, -1))
    return total / pairs.sum(dim=(-2, -1)).clamp(min=1)


MEAN_OF_PAIRS = MeanOfPairs()
"""The default structure."""

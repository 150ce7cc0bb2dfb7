"""From pairs of responses to prompts: what all pairwise objectives share.

The loss of every pair is computed on a grid [B, R, R], winner by row and loser by column, and averaged
over the pairs of each prompt, so that prompts are weighted equally.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from pl_prefopt.functional import PairwiseLoss
from pl_prefopt.objectives.base import Needs, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.pairing import Pairing
from pl_prefopt.types import Outcome, ScoredBatch


class PairLoss(Protocol):
    """A pairwise loss of one or more values per response: winner and loser of the first, the second, ..."""

    def __call__(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return losses and rewards."""


def compare(batch: ScoredBatch, pairing: Pairing, pair_loss: PairLoss, *operands: Tensor) -> Outcome:
    """Compare the responses of each prompt pair by pair.

    Args:
        batch: supplies the scores, and which responses are present.
        pairing: picks the pairs.
        pair_loss: called once as ``pair_loss(x_w, x_l, y_w, y_l, ...)`` for the operands x, y, ..., with
            shapes [B, R, 1] for winners and [B, 1, R] for losers. Its chosen reward must depend on the
            chosen response alone.
        operands: each [B, R], such as the log-probs of the policy and of a reference.

    Returns:
        The mean loss over each prompt's pairs; loss 0 and not counted where a prompt has no pair.
    """
    wins = pairing(batch.scores, batch.present)
    # The grid includes absent responses, whose values, possibly NaN, must not reach a gradient.
    filled = [torch.where(batch.present, operand, 0.0) for operand in operands]
    sides = [side for operand in filled for side in (operand.unsqueeze(-1), operand.unsqueeze(-2))]
    result = pair_loss(*sides)
    loss, counted = mean_over_pairs(result.loss, wins)
    reward = torch.where(batch.present, result.chosen_reward.squeeze(-1), 0.0)
    return Outcome(loss=loss, counted=counted, reward=reward)


def mean_over_pairs(losses: Tensor, wins: Tensor) -> tuple[Tensor, Tensor]:
    """Average ``losses`` [B, R, R] over the pairs in ``wins``, prompt by prompt.

    Returns:
        The means [B], 0 where there is no pair, and bool [B], whether there is one.
    """
    pairs = wins.sum(dim=(-2, -1))
    total = torch.where(wins, losses, 0.0).sum(dim=(-2, -1))
    return total / pairs.clamp(min=1), pairs > 0


class PairwiseReferenceObjective(ReferenceObjective):
    """An objective on pairs of log-ratios: all of DPO's relatives.

    Args:
        pairing: which responses to compare.
    """

    def __init__(self, *, pairing: Pairing) -> None:
        super().__init__()
        self.pairing = pairing

    @property
    def needs(self) -> Needs:
        """One reference and two responses."""
        return Needs(min_references=1, max_references=1, min_responses=2)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Compare the sums of log-probs of policy and reference."""
        return compare(batch, self.pairing, self.pair_loss, batch.policy.sum, batch.references[0])

    @abstractmethod
    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return the loss of (policy_chosen, policy_rejected, reference_chosen, reference_rejected)."""


class PairwiseReferenceFreeObjective(ReferenceFreeObjective):
    """An objective on pairs of average log-probs per token.

    Args:
        pairing: which responses to compare.
    """

    def __init__(self, *, pairing: Pairing) -> None:
        super().__init__()
        self.pairing = pairing

    @property
    def needs(self) -> Needs:
        """Two responses; references are accepted but not used."""
        return Needs(min_responses=2)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Compare the policy's average log-probs."""
        return compare(batch, self.pairing, self.pair_loss, batch.policy.mean)

    @abstractmethod
    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return the loss of (policy_chosen, policy_rejected)."""

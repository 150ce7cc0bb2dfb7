"""Sr-DPO and Sr-IPO: the policy's own judgement, asked for quality, refines the margin to reach."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.functional import PairwiseLoss
from pl_prefopt.objectives.base import Needs, Objective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.pair_references import PairReference, ReferenceGrid, SingleReference
from pl_prefopt.objectives.pairs import mean_over_pairs
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.types import Outcome, ScoredBatch
from pl_prefopt.views import QualityPrompt, View

QUALITY = "quality"
"""The name of the view under which the policy judges."""
QUALITY_PROMPT = QualityPrompt()
SINGLE_REFERENCE = SingleReference()


class _Compared(NamedTuple):
    """Policy and reference on one view.

    Attributes:
        sides: the four arguments of a pairwise loss: policy of winner and loser, reference of both.
        log_ratio: a(y) of each response by itself, [B, R], detached, 0 where absent.
        grid: the reference.
    """

    sides: tuple[Tensor, Tensor, Tensor, Tensor]
    log_ratio: Tensor
    grid: ReferenceGrid


class SelfRefinedObjective(Objective):
    """The family that scores each pair a second time, under a prompt that asks for quality.

    Args:
        beta: β > 0, how dear it is to leave the reference.
        strength: λ ≥ 0, of the refinement; at 0 nothing is refined.
        view: the prompt under which the policy judges.
        reference: what the policy is compared with, under both prompts.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    rewarded_views = (QUALITY,)

    def __init__(
        self,
        *,
        beta: float = 0.1,
        strength: float = 0.5,
        view: View = QUALITY_PROMPT,
        reference: PairReference = SINGLE_REFERENCE,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__()
        self.beta = positive("beta", beta)
        self.strength = non_negative("strength", strength)
        self.view = view
        self.reference = reference
        self.pairing = pairing

    @property
    def needs(self) -> Needs:
        """What the reference takes, two responses, and the rows under the quality prompt."""
        fewest, most = self.reference.num_references
        return Needs(min_references=fewest, max_references=most, min_responses=2, views={QUALITY: self.view})

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average the refined loss over each prompt's pairs."""
        wins, view = self.pairing(batch.scores, batch.present), batch.views[QUALITY]
        plain = self._compare(batch.policy.sum, batch.references, batch.present, wins)
        quality = self._compare(view.policy.sum, view.references, batch.present, wins)
        delta = functional.refinement(*quality.sides, beta=self.beta)
        loss, counted = mean_over_pairs(self.pair_loss(*plain.sides, delta).loss, wins)
        return Outcome(
            loss=loss,
            counted=counted,
            reward=self.beta * plain.log_ratio,
            view_rewards={QUALITY: self.beta * quality.log_ratio},
            stats=plain.grid.stats,
        )

    @abstractmethod
    def pair_loss(self, *sides_and_delta: Tensor) -> PairwiseLoss:
        """Return the loss of (policy_chosen, policy_rejected, reference_chosen, reference_rejected, Δ)."""

    def _compare(self, policy: Tensor, references: Tensor, present: Tensor, wins: Tensor) -> _Compared:
        policy = torch.where(present, policy, 0.0)
        grid = self.reference(references, present, wins)
        log_ratio = torch.where(present, policy.detach() - grid.response, 0.0)
        sides = (policy.unsqueeze(-1), policy.unsqueeze(-2), grid.chosen, grid.rejected)
        return _Compared(sides, log_ratio, grid)


class SrDPO(SelfRefinedObjective):
    """Self-refined DPO (Yu et al., arXiv 2405.21040).

    With ``reference`` a ``VirtualReference`` it is self-refined MRPO. The reward leaves the refinement out.

    Args:
        beta: β > 0, how dear it is to leave the reference.
        strength: λ ≥ 0, of the refinement; at 0 it is DPO.
        view: the prompt under which the policy judges.
        reference: what the policy is compared with, under both prompts.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def pair_loss(self, *sides_and_delta: Tensor) -> PairwiseLoss:
        """Return ``functional.sr_dpo``."""
        return functional.sr_dpo(*sides_and_delta, beta=self.beta, strength=self.strength)


class SrIPO(SelfRefinedObjective):
    """Self-refined IPO (Yu et al., arXiv 2405.21040), on sums of log-probs.

    Args:
        beta: β > 0, IPO's τ; the margin of the log-ratios is drawn to 1/(2β) + λΔ.
        strength: λ ≥ 0, of the refinement; at 0 it is IPO.
        view: the prompt under which the policy judges.
        reference: what the policy is compared with, under both prompts.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def pair_loss(self, *sides_and_delta: Tensor) -> PairwiseLoss:
        """Return ``functional.sr_ipo``."""
        return functional.sr_ipo(*sides_and_delta, beta=self.beta, strength=self.strength)

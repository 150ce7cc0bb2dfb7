"""KTO: responses that are desirable or not, without pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, ReferenceObjective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.ranks import summed_over_ranks
from pl_prefopt.objectives.unpaired import check_both_kinds
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch, ViewLogProbs
from pl_prefopt.views import Mismatched

PAGE = "methods/kto.md"

MISMATCHED = "mismatched"
"""The name of the view on which the reference point is estimated."""


class KTO(ReferenceObjective):
    """Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306).

    The reference point z is the mean log-ratio on mismatched prompts and responses over the batches of
    all ranks, at least 0, without gradient. Every rank must therefore run the same number of steps.

    Args:
        beta: β > 0; with larger values, a response's loss saturates at smaller log-ratios.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0. With n_D desirable and n_U undesirable responses, choose the weights
            so that λ_D n_D / (λ_U n_U) lies between 1 and 4/3, the range outside which TRL warns.
        desirable_above: a response with a score above this is desirable, any other with a known score not.
            Training needs both, unless the weight of the missing kind is 0.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A policy that is its reference:

        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = example([-10.0, -10.0], [-10.0, -10.0])
        >>> batch = with_view(batch, "mismatched", [-10.0, -10.0], [-10.0, -10.0])
        >>> KTO()(batch).loss  # 1 − σ(0)
        tensor([0.5000])
    """

    data = ("unpaired", "pairs", "lists")
    use_when = "Each response has a thumbs up or down of its own, and there are no pairs."
    stats = (
        MetricInfo(
            name="kl",
            help="KTO's reference point z: mean log-ratio on mismatched prompts and responses, at least 0.",
            range=(0.0, math.inf),
            unit="nats",
        ),
    )

    def __init__(
        self,
        *,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        desirable_above: float = 0.5,
    ) -> None:
        super().__init__()
        self.beta = positive("beta", beta)
        self.desirable_weight = non_negative("desirable_weight", desirable_weight)
        self.undesirable_weight = non_negative("undesirable_weight", undesirable_weight)
        self.desirable_above = desirable_above

    @property
    def needs(self) -> Needs:
        """One reference, and the mismatched view for the reference point."""
        return Needs(min_references=1, max_references=1, views={MISMATCHED: Mismatched()})

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Raise if the rows are all desirable or all undesirable, unless the other weight is 0."""
        super().check_training_rows(rows)
        if not self.desirable_weight or not self.undesirable_weight:
            return
        check_both_kinds(type(self).__name__, rows, self.desirable_above)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average each prompt's losses over its responses with a known score."""
        kl = reference_point(batch.views[MISMATCHED])
        losses, rewards = functional.kto(
            torch.where(batch.present, batch.policy.sum, 0.0),
            torch.where(batch.present, batch.references[0], 0.0),
            batch.scores > self.desirable_above,
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        known = batch.present & ~batch.scores.isnan()
        responses = known.sum(dim=-1)
        loss = torch.where(known, losses, 0.0).sum(dim=-1) / responses.clamp(min=1)
        return Outcome(loss=loss, counted=responses > 0, reward=rewards, stats={"kl": kl})


def reference_point(view: ViewLogProbs) -> Tensor:
    """Return z = max(0, mean of log π_θ − log π_ref) over the view's responses on all ranks.

    Sum and count are reduced separately, so that ranks with fewer responses count for less.
    """
    log_ratio = (view.policy.sum - view.references[0]).detach()
    total = torch.where(view.present, log_ratio, 0.0).sum()
    parts = summed_over_ranks(torch.stack([total, view.present.sum().to(total.dtype)]))
    return (parts[0] / parts[1].clamp(min=1)).clamp(min=0)

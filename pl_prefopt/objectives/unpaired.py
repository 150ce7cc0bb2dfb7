"""Objectives on single responses that are desirable or not, beside KTO: BCO and APO-zero."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.errors import ContractError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, ReferenceObjective
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.pair_columns import as_numbers, check_probabilities, or_else
from pl_prefopt.objectives.ranks import summed_over_ranks
from pl_prefopt.pairing import known
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/unpaired.md"


class UnpairedObjective(ReferenceObjective):
    """An objective on single responses with a known score, whose reward is βa(y), a the log-ratio.

    Args:
        beta: β > 0, the scale of the reward.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0.
        desirable_above: a response with a score above this is desirable, any other with a known score not.
    """

    data = ("unpaired", "pairs", "lists")

    def __init__(
        self, *, beta: float, desirable_weight: float, undesirable_weight: float, desirable_above: float
    ) -> None:
        super().__init__()
        self.beta = positive("beta", beta)
        self.desirable_weight = non_negative("desirable_weight", desirable_weight)
        self.undesirable_weight = non_negative("undesirable_weight", undesirable_weight)
        self.desirable_above = desirable_above

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Raise if the rows are all desirable or all undesirable, unless the other weight is 0."""
        super().check_training_rows(rows)
        if self.desirable_weight and self.undesirable_weight:
            check_both_kinds(type(self).__name__, rows, self.desirable_above)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average each prompt's losses over its responses with a known score."""
        there = known(batch.scores, batch.present)
        ratio = torch.where(batch.present, batch.policy.sum - batch.references[0], 0.0)
        desirable, reward = batch.scores > self.desirable_above, self.beta * ratio
        losses, stats = self.losses(batch, reward, desirable, there)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        loss = torch.where(there, weights * losses, 0.0).sum(dim=-1) / there.sum(dim=-1).clamp(min=1)
        return Outcome(loss=loss, counted=there.any(dim=-1), reward=reward.detach(), stats=stats)

    @abstractmethod
    def losses(
        self, batch: ScoredBatch, reward: Tensor, desirable: Tensor, there: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each response, [B, R], without λ, and what is logged.

        Args:
            batch: the batch.
            reward: βa(y), [B, R], with gradient; 0 at absent responses.
            desirable: bool [B, R].
            there: bool [B, R], the responses with a known score.
        """


class APOZeroUnpaired(UnpairedObjective):
    """Unpaired APO-zero: λ_D[1 − σ(βa)] if desirable, λ_U σ(βa) if not, a the log-ratio.

    D'Oosterlinck et al., arXiv 2408.06266, eq. 7, on single responses as TRL's ``apo_zero_unpaired`` has it:
    KTO with the reference point 0. β is ``APOZero``'s. On pairs, with both weights 1, the loss is half of
    APOZero's.

    Args:
        beta: β > 0; with larger values, a response's loss saturates at smaller log-ratios.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0.
        desirable_above: a response with a score above this is desirable, any other with a known score not.
            Training needs both, unless the weight of the missing kind is 0.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> APOZeroUnpaired()(example([-10.0], [-10.0], scores=[1.0])).loss
        tensor([0.5000])
    """

    use_when = "Each response has a thumbs up or down of its own, and desirable ones beat the policy's own."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        desirable_above: float = 0.5,
    ) -> None:
        super().__init__(
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
            desirable_above=desirable_above,
        )

    def losses(
        self, batch: ScoredBatch, reward: Tensor, desirable: Tensor, there: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.where(desirable, -reward, reward).sigmoid(), {}


class BCO(UnpairedObjective):
    """Binary classifier optimisation: −log σ(βa − δ) if desirable, −log σ(δ − βa) if not, a the log-ratio.

    Jung et al., arXiv 2404.04656. The shift δ is the mean of all rewards βa seen in training so far, of all
    ranks, and carries no gradient. A training batch is added before its own losses are computed, and a
    checkpoint holds δ; outside training it stays as it is, 0 without any. β 0.01 is as TRL's paper index
    lists it, with a learning rate of 5e-7 and batches of 128; the default of TRL's former BCOTrainer was 0.1.

    Args:
        beta: β > 0, the scale of the reward.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0.
        desirable_above: a response with a score above this is desirable, any other with a known score not.
            Training needs both, unless the weight of the missing kind is 0.
        probability_column: a column with a number in [0, 1] per row, the probability p by a classifier that
            the prompt belongs to a desirable response. Undesirable responses are then weighted by p/(1 − p),
            held between 0.5 and 10, as if their prompts were those of desirable ones. ``None`` for no
            weights; they are 1 in rows without a number.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        The batch's mean reward is 0.5, so a reward of 1 is ½ above it:

        >>> from pl_prefopt.objectives.examples import example
        >>> BCO(beta=0.5)(example([-8.0, -10.0], [-10.0, -10.0])).loss
        tensor([0.4741])

        A policy that is its reference:

        >>> BCO()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # log 2
        tensor([0.6931])
    """

    use_when = (
        "Desirable and undesirable responses are unpaired, and KTO's saturating loss learns too little."
    )
    stats = (
        MetricInfo(
            name="delta", help="BCO's shift δ: the mean of all rewards in training so far.", unit="nats"
        ),
    )

    def __init__(
        self,
        *,
        beta: float = 0.01,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        desirable_above: float = 0.5,
        probability_column: str | None = None,
    ) -> None:
        super().__init__(
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
            desirable_above=desirable_above,
        )
        self.probability_column = probability_column
        # float64 whatever the module's precision: a sum over a run, and half precision would spoil it.
        self._seen = torch.zeros(2, dtype=torch.float64)

    @property
    def needs(self) -> Needs:
        """One reference, and the column of probabilities if there is one."""
        columns = () if self.probability_column is None else (self.probability_column,)
        return Needs(min_references=1, max_references=1, columns=columns)

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows of one kind, and a column that holds no probabilities."""
        super().check_training_rows(rows)
        if self.probability_column is not None:
            check_probabilities(rows, self.probability_column)

    def check_evaluation_rows(self, rows: Sequence[PreferenceRow], split: str) -> None:
        """Refuse such a column where a loss is computed."""
        if self.probability_column is not None and split != "predict":
            check_probabilities(rows, self.probability_column, split)

    def get_extra_state(self) -> Tensor:
        """Return the sum and the number of all rewards so far."""
        return self._seen.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from the sum and the number of a checkpoint."""
        self._seen = state.clone()

    def losses(
        self, batch: ScoredBatch, reward: Tensor, desirable: Tensor, there: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training:
            seen = torch.stack([torch.where(there, reward, 0.0).sum(), there.sum().to(reward)])
            self._seen = self._seen.to(reward.device) + summed_over_ranks(seen).double()
        total, count = self._seen.to(reward.device)
        delta = (total / count.clamp(min=1)).to(reward.dtype)
        losses = -logsigmoid(torch.where(desirable, reward - delta, delta - reward))
        return self._density_ratio(batch, losses, desirable), {"delta": delta}

    def _density_ratio(self, batch: ScoredBatch, losses: Tensor, desirable: Tensor) -> Tensor:
        if self.probability_column is None:
            return losses
        p = or_else(as_numbers(batch, self.probability_column, losses), 0.5).view(-1, 1)
        return torch.where(desirable, losses, (p / (1 - p)).clamp(0.5, 10.0) * losses)


def check_both_kinds(objective: str, rows: Sequence[PreferenceRow], desirable_above: float) -> None:
    """Raise if the rows are all desirable or all undesirable.

    Raises:
        ContractError: saying which kind is missing.
    """
    at, low, high = desirable_above, math.inf, -math.inf
    for row in rows:
        low, high = min((low, *(row.scores or ()))), max((high, *(row.scores or ())))
        if low <= at < high:
            return
    there, missing = ("desirable", "undesirable") if low > at else ("undesirable", "desirable")
    remedy = f"add rows that are {missing}"
    if low < high:
        remedy = f"set objective.init_args.desirable_above between them, such as to {(low + high) / 2:g}"
    raise ContractError(
        f"{objective} needs desirable and undesirable responses, but in all {len(rows)} train rows they are "
        f"{there}: scores run from {low:g} to {high:g}, objective.init_args.desirable_above is {at:g}; "
        f"{remedy}, or set {missing}_weight to 0 to train on {there} responses alone."
    )

"""Terms as settings: what is added to the loss of comparisons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.pair_columns import check_marks, numbers
from pl_prefopt.objectives.structures import mean_over
from pl_prefopt.pairing import best
from pl_prefopt.rows import PreferenceRow

PAGE = "methods/compose.md"


class Term(ABC):
    """A loss of each prompt, added to that of its comparisons."""

    name: ClassVar[str]
    """Under which it is logged: ``train/<name>``."""

    @property
    def info(self) -> MetricInfo:
        """What the logged number is."""
        return MetricInfo(name=self.name, help="Mean over prompts of a term of the loss.", better="lower")

    @property
    def needs(self) -> Needs:
        """What the term must be given beyond what the score is: by default the policy's log-probs."""
        return Needs()

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Raise if the rows of a split lack what the term reads; by default they don't."""
        del rows, split

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return the loss of each prompt, [B], 0 where it has no pair."""


@dataclass(frozen=True)
class WeightedTerm(Term):
    """A loss with a weight λ ≥ 0.

    Args:
        weight: λ ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    weight: float

    def __post_init__(self) -> None:
        non_negative("weight", self.weight)


@dataclass(frozen=True)
class NegativeLogLikelihood(WeightedTerm):
    """−λ log π_θ(y_w|x) / |y_w|, the mean over pairs: supervised fine-tuning on the winners.

    With two responses that is the NLL per token of the chosen one, as in ORPO and in RPO (arXiv 2404.19733).

    Args:
        weight: λ ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    name = "nll"
    info = MetricInfo(
        name="nll",
        help="Mean over prompts of the loss of fine-tuning on the winners, with its weight.",
        unit="nats",
        better="lower",
    )
    weight: float = 1.0

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.weight * mean_over(compared.pairs, -compared.batch.policy.mean.unsqueeze(-1))


@dataclass(frozen=True)
class SequenceNegativeLogLikelihood(WeightedTerm):
    """−λ log π_θ(y|x) of the best scored response, summed over its tokens; the mean of best ones that tie.

    Args:
        weight: λ ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    name = "sequence_nll"
    info = MetricInfo(
        name="sequence_nll",
        help="Mean over prompts of the NLL of the best response, summed over its tokens, with its weight.",
        unit="nats",
        better="lower",
    )

    def __call__(self, compared: Comparisons) -> Tensor:
        batch = compared.batch
        chosen = best(batch.scores, batch.present) & compared.pairs.any(dim=-1)
        return -self.weight * mean_where(chosen, batch.policy.sum)


@dataclass(frozen=True)
class Centring(WeightedTerm):
    """c (r_w + r_l)², the mean over pairs: rewards around 0, which comparisons alone leave open.

    TRL's ``center_rewards_coefficient``, after Eisenstein et al., arXiv 2312.09244. TRL recommends 0.01.

    Args:
        weight: c ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    name = "centring"
    info = MetricInfo(
        name="centring",
        help="Mean over prompts of the squared sum of both rewards of a pair, with its weight.",
        better="lower",
    )
    weight: float = 0.01

    @property
    def needs(self) -> Needs:
        """Nothing beyond the rewards."""
        return Needs(log_probs=False)

    def __call__(self, compared: Comparisons) -> Tensor:
        total = compared.rewards.chosen + compared.rewards.rejected
        return self.weight * mean_over(compared.pairs, total.square())


CalibratedOn: TypeAlias = Literal["chosen", "rejected", "both", "reference_samples"]
"""The responses that stand for π_cal: winners, losers, both weighted equally, or samples of the reference."""


@dataclass(frozen=True)
class Calibration(Term):
    """λ E log π_θ(y|x) over y ~ π_cal: VPO's and XPO's term. λ < 0 raises these responses, λ > 0 lowers them.

    Args:
        weight: λ; −αβ in offline VPO, +αβ in online VPO.
        on: the responses that stand for π_cal. The first three take the mean over a prompt's pairs; samples
            of the reference are the responses that ``column`` marks, and a row without any adds 0.
        column: for ``reference_samples``, the name of a column with true or false (or 1 and 0) per response.

    Raises:
        ConfigError: if ``on`` is unknown.
    """

    name = "calibration"
    info = MetricInfo(
        name="calibration",
        help="Mean over prompts of the log-prob of the calibration responses, with its weight.",
        unit="nats",
    )
    weight: float
    on: CalibratedOn = "chosen"
    column: str = "reference_sample"

    def __post_init__(self) -> None:
        if self.on not in get_args(CalibratedOn):
            raise ConfigError(f"on must be one of {', '.join(get_args(CalibratedOn))}, but is {self.on!r}.")

    @property
    def needs(self) -> Needs:
        """The column that marks samples of the reference, for those."""
        return Needs(columns=(self.column,) if self.on == "reference_samples" else ())

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse rows of which none has a sample of the reference, where those are asked for."""
        if self.on == "reference_samples":
            check_marks(rows, self.column, split)

    def __call__(self, compared: Comparisons) -> Tensor:
        logps = compared.batch.policy.sum
        if self.on == "reference_samples":
            marks = numbers(compared, self.column)
            marked = marks.view(-1, 1).expand_as(logps) if marks.dim() == 1 else marks
            marked = (marked > 0) & compared.batch.present & compared.pairs.any(-1).any(-1).unsqueeze(-1)
            return self.weight * mean_where(marked, logps)
        winners = mean_over(compared.pairs, logps.unsqueeze(-1))
        losers = mean_over(compared.pairs, logps.unsqueeze(-2))
        expected = {"chosen": winners, "rejected": losers, "both": (winners + losers) / 2}
        return self.weight * expected[self.on]


def mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Return the mean of ``values`` [B, R] over the responses in ``chosen``, [B]; 0 where there is none."""
    return torch.where(chosen, values, 0.0).sum(dim=-1) / chosen.sum(dim=-1).clamp(min=1)

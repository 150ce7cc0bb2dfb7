"""Offsets as settings: what the margin of a pair must reach beyond 0, in units of the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative, positive, require_some_grades
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.pair_columns import check_pair_column, column_of_pairs, or_else
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.views import QualityPrompt, View

QUALITY = "quality"
"""The name of the view under which the policy judges."""
QUALITY_PROMPT = QualityPrompt()


class Offset(ABC):
    """Is subtracted from the margin of each pair."""

    rewarded_views: ClassVar[tuple[str, ...]] = ()
    """The views of which it asks for the rewards; they are measured too."""

    @property
    def needs(self) -> Needs:
        """What the offset must be given beyond what the score is: by default nothing."""
        return Needs()

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Raise if the rows of a split lack what the offset reads; by default they don't."""
        del rows, split

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return the offset of each pair, broadcastable to [B, R, R]; finite also where there is no pair."""


@dataclass(frozen=True)
class Margin(Offset):
    """A constant γ: SimPO's target margin.

    Args:
        gamma: γ ≥ 0.

    Raises:
        ConfigError: if ``gamma`` is negative.
    """

    gamma: float

    def __post_init__(self) -> None:
        non_negative("gamma", self.gamma)

    def __call__(self, compared: Comparisons) -> Tensor:
        return compared.rewards.chosen.new_tensor(self.gamma)


@dataclass(frozen=True)
class ScoreGap(Offset):
    """α(s_w − s_l): better graded winners must win by more. 0 in rows without grades.

    Reconstructed after ODPO (Amini et al., arXiv 2402.10571): its offset α f(s_w − s_l), f the identity.

    Args:
        alpha: α > 0, in units of the reward per unit of the score.

    Raises:
        ConfigError: if ``alpha`` is not above 0.
    """

    alpha: float

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse training rows of which none has grades."""
        if split == "train":
            require_some_grades(type(self).__name__, rows)

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.alpha * torch.where(_graded(compared), gap(compared.batch.scores), 0.0)


@dataclass(frozen=True)
class LogScoreGap(Offset):
    """α log(s_w − s_l), negative for gaps below 1. 0 in rows without grades.

    Reconstructed after ODPO (Amini et al., arXiv 2402.10571): its offset α f(s_w − s_l), f the logarithm.

    Args:
        alpha: α > 0, in units of the reward.

    Raises:
        ConfigError: if ``alpha`` is not above 0.
    """

    alpha: float

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse training rows of which none has grades."""
        if split == "train":
            require_some_grades(type(self).__name__, rows)

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.alpha * torch.where(_graded(compared), gap(compared.batch.scores), 1.0).log()


@dataclass(frozen=True)
class LengthGap(Offset):
    """α(|y_w| − |y_l|), in tokens: for α > 0 longer winners must win by more, for α < 0 by less.

    A negative α is the length penalty of R-DPO (Park et al., "Disentangling Length from Quality in Direct
    Preference Optimization", arXiv 2403.19159), see ``LengthDPO``.

    Args:
        alpha: α, in units of the reward per token.
    """

    alpha: float

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.alpha * gap(compared.batch.policy.length.to(compared.rewards.chosen.dtype))


@dataclass(frozen=True)
class Drop(Offset):
    """λ max(0, −r_w): a winner below the reference must first catch up with it (DPO-Positive).

    Pal et al. ("Smaug"), arXiv 2402.13228. Unlike the other offsets it carries a gradient.

    Args:
        penalty: λ ≥ 0.

    Raises:
        ConfigError: if ``penalty`` is negative.
    """

    penalty: float

    def __post_init__(self) -> None:
        non_negative("penalty", self.penalty)

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.penalty * (-compared.rewards.chosen).relu()


@dataclass(frozen=True)
class Refinement(Offset):
    """λ sg(r_w − r_l) under a prompt that asks for quality: what the policy tells apart must win by more.

    Yu et al., arXiv 2405.21040, eq. 12 and 13.

    Args:
        strength: λ ≥ 0.
        view: the prompt under which the policy judges.

    Raises:
        ConfigError: if ``strength`` is negative.
    """

    strength: float
    view: View = QUALITY_PROMPT

    rewarded_views = (QUALITY,)

    def __post_init__(self) -> None:
        non_negative("strength", self.strength)

    @property
    def needs(self) -> Needs:
        """The rows under the quality prompt."""
        return Needs(views={QUALITY: self.view})

    def __call__(self, compared: Comparisons) -> Tensor:
        quality = compared.on_view(QUALITY)
        return self.strength * (quality.chosen - quality.rejected).detach()


@dataclass(frozen=True)
class ColumnMargin(Offset):
    """α û, with the strength û of each pair from a column as its target margin; 0 where the value is missing.

    Args:
        column: its name. One number per row is û of its pair; of one number per response, such as rewards, û
            is the winner's minus the loser's.
        alpha: α, in units of the reward per unit of the column.
    """

    column: str
    alpha: float = 1.0

    @property
    def needs(self) -> Needs:
        """The column."""
        return Needs(columns=(self.column,))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse a column without numbers, and one number for more than two responses."""
        check_pair_column(rows, self.column, split)

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.alpha * or_else(column_of_pairs(compared, self.column), 0.0)


def gap(values: Tensor) -> Tensor:
    """Return the value of the winner minus that of the loser, [B, R, R]."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def _graded(compared: Comparisons) -> Tensor:
    """Return bool [B, R, R], the pairs of which the difference of scores means something."""
    return compared.pairs & compared.batch.graded.view(-1, 1, 1)

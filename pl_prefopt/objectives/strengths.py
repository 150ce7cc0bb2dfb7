"""Labels that are flipped or smoothed where a preference is weak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.labels import SoftLabel
from pl_prefopt.objectives.pair_columns import check_pair_column, column_of_pairs
from pl_prefopt.rows import PreferenceRow


@dataclass(frozen=True)
class StrengthLabel(SoftLabel):
    """q = ``weak`` where the strength û of a preference is low; 1 elsewhere, and if û is unknown.

    û is a reward model's margin, or the mean of several models' margins. Wang et al. ("Secrets of RLHF in
    Large Language Models Part II"), arXiv 2401.06080, flip or smooth the labels of weak pairs: with ``below``
    0, ``weak`` is 0 to flip them, α to flip and smooth them, 1 − α to smooth them, and 0.5 to learn nothing
    but that the two are alike. Their α was not found, so that ``weak`` has no default.

    Args:
        column: a column of the rows. One number per row is the winner's û over the loser; of one number per
            response û is the winner's minus the loser's.
        weak: q of weak pairs, in [0, 1].
        below: the strength below which a pair is weak. To take the lowest 20 %, as the authors do, give the
            20 % quantile of the column.

    Raises:
        ConfigError: if ``weak`` is out of range.
    """

    column: str
    weak: float
    below: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weak <= 1:
            raise ConfigError(f"weak must be at least 0 and at most 1, but is {self.weak}.")

    @property
    def needs(self) -> Needs:
        """The column."""
        return Needs(columns=(self.column,))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse a column without numbers, and a single number for a row with several pairs."""
        check_pair_column(rows, self.column, split)

    def __call__(self, compared: Comparisons) -> Tensor:
        weak = column_of_pairs(compared, self.column) < self.below  # false for NaN
        return torch.where(weak, self.weak, 1.0).to(compared.rewards.chosen)

"""Weights of pairs as settings. They multiply the loss of a pair and carry no gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.errors import ContractError
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.pair_columns import numbers
from pl_prefopt.objectives.token_scores import tokens_of
from pl_prefopt.pairing import known
from pl_prefopt.requests import TokenRequest
from pl_prefopt.rows import PreferenceRow


class PairWeight(ABC):
    """Multiplies the loss of each pair."""

    @property
    def needs(self) -> Needs:
        """What the weight must be given beyond what the score is: by default nothing."""
        return Needs()

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:  # noqa: B027 - few weights read the rows
        """Raise a ``ContractError`` if it can't be read from the rows of a split."""

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return the weight of each pair, broadcastable to [B, R, R]; finite also where there is no pair."""


@dataclass(frozen=True)
class ConstantWeight(PairWeight):
    """The same weight for all pairs, such as ORPO's λ, the weight of the odds ratio.

    Args:
        value: λ ≥ 0.

    Raises:
        ConfigError: if ``value`` is negative.
    """

    value: float

    def __post_init__(self) -> None:
        non_negative("value", self.value)

    def __call__(self, compared: Comparisons) -> Tensor:
        return compared.rewards.chosen.new_tensor(self.value)


@dataclass(frozen=True)
class ColumnWeight(PairWeight):
    """A column of the rows as the weight of their pairs, such as how much better a winner was said to be.

    As the magnitude m ∈ {1, 2, 3} of a preference it makes the scaled Bradley-Terry loss −m log σ(z) of
    HelpSteer2-Preference (Wang et al., arXiv 2410.01257).

    Args:
        column: its name; numbers of at least 0, one per row.
    """

    column: str

    @property
    def needs(self) -> Needs:
        """The column."""
        return Needs(columns=(self.column,))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Raise a ``ContractError`` unless the column has one number of at least 0 per row."""
        for row in rows:
            value = row.columns[self.column]
            if isinstance(value, tuple) or not isinstance(value, int | float) or value < 0:
                raise ContractError(
                    f"ColumnWeight needs one number of at least 0 per row in the column '{self.column}', but "
                    f"{row.origin or 'a row'} ({split}) has {value!r}."
                )

    def __call__(self, compared: Comparisons) -> Tensor:
        values = numbers(compared, self.column)
        if values.dim() != 1 or (values < 0).any():
            raise ContractError(
                f"ColumnWeight needs one number of at least 0 per row in the column '{self.column}'."
            )
        return values.view(-1, 1, 1)


@dataclass(frozen=True)
class SwapGain(PairWeight):
    """LambdaLoss's weight: how much swapping the two responses changes the list's DCG.

    |2^s_w − 2^s_l| · |1/log(1 + ρ_w) − 1/log(1 + ρ_l)|, s the score and ρ the rank by the current reward; see
    ``functional.swap_gain``. Liu et al. ("LiPO"), arXiv 2402.01878, eq. 8.
    """

    @property
    def needs(self) -> Needs:
        """Scores of which 2^s is of use in float32."""
        return Needs(score_range=(-30.0, 30.0))

    def __call__(self, compared: Comparisons) -> Tensor:
        batch, reward = compared.batch, compared.rewards.response
        return functional.swap_gain(reward, batch.scores.to(reward.dtype), known(batch.scores, batch.present))


@dataclass(frozen=True)
class PolicyProbability(PairWeight):
    """w(y_w) w(y_l) with w(y) = exp(mean_t[log π_θ(y_t) − log Σ_v π_θ(v)²]): WPO's weights.

    Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv 2406.11827, eq. 2; TRL's
    ``use_weighting``. Pairs that the policy itself would rather write count more, as if they were its own
    samples. A token's factor is 1 on average over tokens sampled from the policy, and 1 for every token of a
    uniform distribution. Pairs are not normalised: weights far from 1 act like another learning rate.
    """

    @property
    def needs(self) -> Needs:
        """The policy's numbers per token; no reference need have any."""
        return Needs(tokens=TokenRequest(references=False, collisions=True))

    def __call__(self, compared: Comparisons) -> Tensor:
        tokens = tokens_of(compared.batch)
        assert tokens.collisions is not None, "asked for in `needs`"
        length = tokens.counted.sum(dim=-1).clamp(min=1)
        aligned = (tokens.policy.detach() - tokens.collisions).sum(dim=-1) / length
        weight = aligned.exp()
        return weight.unsqueeze(-1) * weight.unsqueeze(-2)

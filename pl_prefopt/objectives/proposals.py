"""Proposals as settings: the log-probs of responses under the model that they were sampled from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.pair_columns import as_numbers
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import ScoredBatch


class Proposal(ABC):
    """Gives log q′(y|x) of each response, q′ the model that wrote it."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What it is read from."""

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:  # noqa: B027 - few proposals read the rows
        """Raise a ``ContractError`` if it can't be read from the rows of a split."""

    @abstractmethod
    def __call__(self, batch: ScoredBatch) -> Tensor:
        """Return sums of log-probs [B, R], 0 where a response is absent, without gradient."""


@dataclass(frozen=True)
class ReferenceProposal(Proposal):
    """A reference of the run.

    Args:
        number: its place in ``references.members``, from 0. 0 is the objective's own reference: the responses
            were sampled from it. 1 is a second one.

    Raises:
        ConfigError: if ``number`` is negative.
    """

    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ConfigError(f"number must be 0 or more, but is {self.number}.")

    @property
    def needs(self) -> Needs:
        """That reference and those before it."""
        return Needs(min_references=self.number + 1, max_references=self.number + 1)

    def __call__(self, batch: ScoredBatch) -> Tensor:
        return torch.where(batch.present, batch.references[self.number], 0.0)


@dataclass(frozen=True)
class ColumnProposal(Proposal):
    """A column of the rows: for each response, the sum of the log-probs of its tokens when it was sampled.

    The sum goes over all tokens of the response, its end token included, at temperature 1 and without
    top-p or top-k, or with whatever the sampler really did.

    Args:
        column: its name.
    """

    column: str

    @property
    def needs(self) -> Needs:
        """The column, and one reference."""
        return Needs(min_references=1, max_references=1, columns=(self.column,))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Raise a ``ContractError`` unless the column has one log-prob per response."""
        for row in rows:
            value = row.columns[self.column]
            if not isinstance(value, tuple) or not all(
                isinstance(each, int | float) and each <= 0 for each in value
            ):
                raise ContractError(
                    f"ColumnProposal expects one log-prob per response, at most 0, in the column "
                    f"'{self.column}', but {row.origin or 'a row'} ({split}) has {value!r}: give the "
                    "natural logarithm of each response's probability."
                )

    def __call__(self, batch: ScoredBatch) -> Tensor:
        values = as_numbers(batch, self.column, batch.policy.sum)
        if values.dim() != 2:
            raise ContractError(f"ColumnProposal expects one log-prob per response in '{self.column}'.")
        return torch.where(batch.present, values, 0.0)

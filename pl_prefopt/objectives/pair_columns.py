"""Columns of the data that hold a number per pair or per response."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt.errors import ContractError, DataError
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.rows import PreferenceRow, Value
from pl_prefopt.types import ScoredBatch


def column_of_pairs(compared: Comparisons, name: str) -> Tensor:
    """Return a column's value of each pair, broadcastable to [B, R, R], NaN where it is unknown.

    A column with one number per row holds the value of its winner against its loser. For one number per
    response it is the winner's minus the loser's.

    Raises:
        ContractError: if the column holds texts.
    """
    values = numbers(compared, name)
    if values.dim() == 1:
        return values.view(-1, 1, 1)
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def numbers(compared: Comparisons, name: str) -> Tensor:
    """Return a column as numbers in the rewards' type, [B] or [B, R].

    Raises:
        ContractError: if the column holds texts.
    """
    return as_numbers(compared.batch, name, compared.rewards.chosen)


def as_numbers(batch: ScoredBatch, name: str, like: Tensor) -> Tensor:
    """Return a column as numbers in the type of ``like`` and on its device, [B] or [B, R].

    Raises:
        ContractError: if the column holds texts.
    """
    values = batch.columns[name]
    if not isinstance(values, Tensor):
        raise ContractError(f"expected numbers in the column '{name}', got texts: name another column.")
    return values.to(like)


def check_pair_column(rows: Sequence[PreferenceRow], name: str, split: str = "train") -> None:
    """Refuse a column without any number, or with a single number for a row with several pairs.

    Raises:
        DataError: naming the row.
        ContractError: if no training row has a number.
    """
    for row in rows:
        value = row.columns.get(name)
        if not isinstance(value, tuple) and value is not None and len(row.responses) > 2:
            raise DataError(
                f"expected one number per response in the column '{name}' of a row with "
                f"{len(row.responses)} responses, got a single one in {row.origin or 'a row'} ({split}): "
                "give a list with one number per response, or rows of two responses."
            )
    _check_range(rows, name, split, -math.inf, math.inf)


def _check_range(rows: Sequence[PreferenceRow], name: str, split: str, low: float, high: float) -> None:
    known = False
    for row in rows:
        for each in _numbers_in(row.columns.get(name)):
            known = True
            if not low <= each <= high:
                raise DataError(
                    f"expected numbers from {low:g} to {high:g} in the column '{name}', got {each:g} in "
                    f"{row.origin or 'a row'} ({split}): correct the data, or name another column."
                )
    if not known and split == "train":
        raise ContractError(
            f"expected numbers in the column '{name}', but none of the {len(rows)} train rows has one: add "
            "them to the data, or name another column."
        )


def check_probabilities(rows: Sequence[PreferenceRow], name: str, split: str = "train") -> None:
    """Refuse a column that doesn't hold one number in [0, 1] per row.

    Raises:
        DataError: naming the row.
        ContractError: if a row has one per response, or no training row has any.
    """
    if any(isinstance(row.columns.get(name), tuple) for row in rows):
        raise ContractError(
            f"expected one probability per row in the column '{name}', got one for each response: "
            "give one per row."
        )
    _check_range(rows, name, split, 0.0, 1.0)


def check_votes(rows: Sequence[PreferenceRow], name: str, split: str = "train") -> None:
    """Refuse votes below 0, and rows in which two responses have no vote: they say nothing of that pair.

    Raises:
        DataError: naming the row.
        ContractError: if no training row has a number.
    """
    _check_range(rows, name, split, 0.0, math.inf)
    for row in rows:
        value = row.columns.get(name)
        if isinstance(value, tuple) and value.count(0) > 1:
            raise DataError(
                f"expected a vote for one of two responses in the column '{name}', got two responses without "
                f"votes in {row.origin or 'a row'} ({split}): remove one of them."
            )


def check_marks(rows: Sequence[PreferenceRow], name: str, split: str = "train") -> None:
    """Refuse a column that doesn't mark single responses, or none of the training rows.

    Raises:
        ContractError: if it marks none, or has one value per row.
    """
    values = [row.columns.get(name) for row in rows]
    marks = [mark for value in values if isinstance(value, tuple) for mark in value]
    if any(value is not None and not isinstance(value, tuple) for value in values):
        raise ContractError(
            f"expected a list with true or false per response in the column '{name}', got single values: "
            "give one per response."
        )
    if split == "train" and not any(mark == 1 for mark in marks):
        raise ContractError(
            f"expected the column '{name}' to mark responses with true, but in none of the {len(rows)} train "
            "rows it does: add it to the data, or name another column."
        )


def _numbers_in(value: Value) -> list[float]:
    values = value if isinstance(value, tuple) else (value,)
    return [float(each) for each in values if isinstance(each, int | float) and not math.isnan(each)]


def or_else(values: Tensor, default: float) -> Tensor:
    """Return ``values`` with ``default`` in place of NaN."""
    return torch.where(values.isnan(), default, values)

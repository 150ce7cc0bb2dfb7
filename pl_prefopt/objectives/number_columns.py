"""Columns of numbers, as objectives read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt.errors import ContractError
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import ScoredBatch


def require_numbers(rows: Sequence[PreferenceRow], column: str, reader: str, *, per_response: bool) -> None:
    """Raise unless ``column`` holds numbers, and with ``per_response`` one for each response.

    A column has one type in all rows, so that the first row shows it.

    Raises:
        ContractError: saying what it holds.
    """
    value = rows[0].columns.get(column)
    sample = value[0] if isinstance(value, tuple) and value else value
    wanted = "one number per response" if per_response else "numbers"
    if isinstance(sample, bool) or not isinstance(sample, int | float):
        raise ContractError(f"{reader} needs {wanted} in the column '{column}', but it holds {sample!r}.")
    if per_response and not isinstance(value, tuple):
        raise ContractError(
            f"{reader} needs {wanted} in the column '{column}', but it holds one number per row, such as "
            f"{value!r}: make it a list with a number for each response."
        )


def numbers(batch: ScoredBatch, column: str, reader: str) -> Tensor:
    """Return a column of numbers, [B] or [B, R], in the dtype of the log-probs.

    Raises:
        ContractError: if it holds anything else.
    """
    values = batch.columns[column]
    if not isinstance(values, Tensor) or values.dtype == torch.bool:
        raise ContractError(f"{reader} needs numbers in the column '{column}'.")
    return values.to(device=batch.policy.sum.device, dtype=batch.policy.sum.dtype)


def per_response(batch: ScoredBatch, column: str, reader: str) -> Tensor:
    """Return a column of one number per response, [B, R], in the dtype of the log-probs.

    Raises:
        ContractError: if it holds anything else.
    """
    values = numbers(batch, column, reader)
    if values.dim() != 2:
        raise ContractError(f"{reader} needs one number per response in the column '{column}'.")
    return values

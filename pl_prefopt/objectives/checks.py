"""Range checks of hyperparameters, with one-sentence errors."""

from __future__ import annotations

from collections.abc import Sequence

from pl_prefopt.checks import below_half as below_half
from pl_prefopt.checks import non_negative as non_negative
from pl_prefopt.checks import positive as positive
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.rows import PreferenceRow


def require_some_grades(reader: str, rows: Sequence[PreferenceRow]) -> None:
    """Raise if no row has scores whose differences mean something.

    For what treats rows with and without grades alike but for the gaps, which are 0 in the latter; where no
    row can do without grades, ``Needs.graded`` refuses each that does.

    Args:
        reader: the class that reads the gaps.
        rows: the training rows.

    Raises:
        ContractError: if all rows have only a better and a worse response.
    """
    if not any(row.graded for row in rows):
        raise ContractError(
            f"{reader} learns from differences of scores, but none of the {len(rows)} train rows has "
            "graded scores: give each response a score, or use an objective for pairs, such as "
            "pl_prefopt.objectives.DPO."
        )


def score_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest score, or raise if they are not two numbers in ascending order.

    Raises:
        ConfigError: if they are not.
    """
    if len(values) != 2 or not values[0] < values[1]:
        raise ConfigError(f"score_range must be [lowest, highest], but is {list(values)}.")
    return values[0], values[1]

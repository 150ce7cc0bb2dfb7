"""Lists of scores, one of each annotator or model: their mean and their population standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.json_values import parse_json

STRENGTH, DEVIATION = "strength", "strength_std"
"""The columns that lists of scores become."""


def is_list(value: Any) -> bool:
    """Whether a score is a list of scores, which may be written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            return False
    return isinstance(value, list | tuple)


def strength_of_pair(
    chosen: Sequence[float], rejected: Sequence[float], names: Sequence[str]
) -> dict[str, float]:
    """Return û, the mean of the annotators' differences, and their population standard deviation.

    Args:
        chosen: one score per annotator.
        rejected: the same annotators' scores, in the same order.
        names: the names of the two columns, for messages.

    Examples:
        >>> strength_of_pair([3.0, 1.0], [1.0, 2.0], ("a", "b"))
        {'strength': 0.5, 'strength_std': 1.5}
    """
    if len(chosen) != len(rejected) or not chosen:
        raise BadRowError(
            f"expected one score per annotator in '{names[0]}' and in '{names[1]}', got {len(chosen)} and "
            f"{len(rejected)}"
        )
    differences = np.subtract(chosen, rejected)
    return {STRENGTH: float(differences.mean()), DEVIATION: float(differences.std())}


def mean_scores(lists: Sequence[Sequence[float]], key: str) -> tuple[list[float], Mapping[str, list[float]]]:
    """Return the mean score of each response, and the columns of a row with lists of scores.

    Examples:
        >>> mean_scores([[7.0, 9.0], [4.0]], "scores")
        ([8.0, 4.0], {'strength': [8.0, 4.0], 'strength_std': [1.0, 0.0]})
    """
    for index, scores in enumerate(lists):
        if not scores:
            raise BadRowError(f"expected at least one score in '{key}[{index}]', got none")
    means = [float(np.mean(scores)) for scores in lists]
    return means, {STRENGTH: means, DEVIATION: [float(np.std(scores)) for scores in lists]}

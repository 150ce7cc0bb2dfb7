"""What the order of two responses does to a judge's verdicts on a benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pl_prefopt.benchmarks.estimates import estimates
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.benchmarks.tasks import Answers, Ask, Number, Task, probability
from pl_prefopt.judges import Verdict, pairs
from pl_prefopt.metrics import order_effects

_NAMES = ("the response shown first wins", "same verdict in both orders", "the verdict flips with the order")
_SEED = 32


def in_both_orders(said: Sequence[tuple[Ask, Verdict]]) -> tuple[tuple[Number, Number], ...]:
    """Return ``Answers.orders``: of judges that see both orders by themselves, and of pairs asked in both."""
    found: list[tuple[Number, Number]] = []
    asked: dict[tuple[int, ...], dict[bool, Number]] = {}
    for ask, verdict in said:
        if verdict.by_order is not None:
            first, second = verdict.by_order
            found += [(first[i][j], second[i][j]) for i, j in pairs(len(first))]
        elif verdict.probabilities is not None and len(ask.places) == 2:
            low, high = sorted(ask.places)
            own = asked.setdefault((low, high), {})
            own[ask.places == (low, high)] = probability(ask, verdict, low, high)
    return (*found, *((own[True], own[False]) for own in asked.values() if len(own) == 2))


def with_orders(result: Result, judged: Sequence[tuple[Task, Answers]]) -> Result:
    """Return a result with a table of the position bias, if pairs were judged in both orders.

    Pairs with an invalid answer are left out.
    """
    numbered = [(number, pair) for number, (_, answers) in enumerate(judged) for pair in answers.orders]
    known = [(number, pair) for number, pair in numbered if None not in pair]
    if not known:
        return result
    values = np.array([pair for _, pair in known], dtype=np.float64)
    _, prompts = np.unique([number for number, _ in known], return_inverse=True)
    effects = estimates(order_effects(values[:, 0], values[:, 1]), seed=_SEED, prompts=prompts.tolist())
    table = dict(zip(_NAMES, effects, strict=True))
    return dataclasses.replace(result, tables={**result.tables, "position bias": table})

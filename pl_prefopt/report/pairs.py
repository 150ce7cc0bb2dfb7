"""From predictions to pairs, and shares of them with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pl_prefopt.metrics import bootstrap
from pl_prefopt.report.predictions import Prediction

Floats: TypeAlias = npt.NDArray[np.float64]
Whole: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """All pairs of a prompt's responses whose scores differ, as the metrics count them. Each [pairs].

    Attributes:
        prompt: the place of the prompt among the predictions.
        better: the place of the better response among the prompt's.
        worse: that of the worse one.
        margin: the better one's reward minus the worse one's.
        gap: the better one's score minus the worse one's.
        graded: whether the gap means something.
        left_out: how many pairs have no finite margin, and so are not among these.
    """

    prompt: Whole
    better: Whole
    worse: Whole
    margin: Floats
    gap: Floats
    graded: Mask
    left_out: int

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def right(self) -> Floats:
        """1 where the margin is positive, one half where it is 0."""
        return np.asarray((np.sign(self.margin) + 1) / 2)


class Estimate(NamedTuple):
    """A share with its 95 % bootstrap interval over prompts, of ``pairs`` pairs."""

    value: float
    low: float
    high: float
    pairs: int


def find_pairs(predictions: Sequence[Prediction]) -> Pairs:
    """Return the pairs of the predictions."""
    rows = [row for number, prediction in enumerate(predictions) for row in _pairs_of(number, prediction)]
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    kept = np.isfinite(table[:, 3])
    prompt, better, worse, margin, gap, graded = table[kept].T
    return Pairs(
        prompt=prompt.astype(np.int64),
        better=better.astype(np.int64),
        worse=worse.astype(np.int64),
        margin=margin,
        gap=gap,
        graded=graded > 0,
        left_out=int((~kept).sum()),
    )


def estimate(values: Floats, prompts: Whole) -> Estimate:
    """Return the mean of ``values`` [pairs] with its interval; prompts are drawn with all their pairs.

    Args:
        values: one number a pair, at least one.
        prompts: [pairs], which prompt each belongs to.
    """
    _, places = np.unique(prompts, return_inverse=True)
    sums, counts = np.bincount(places, weights=values), np.bincount(places).astype(np.float64)
    drawn = bootstrap.resampled_weights(np.arange(len(sums)), resamples=_RESAMPLES, seed=0)
    means = np.concatenate([(weights @ sums) / (weights @ counts) for weights in drawn])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def quantile_edges(values: Floats, most: int, fewest_in_each: int = 20) -> Floats:
    """Return the rising ends of up to ``most`` bins that hold about as many values each.

    Fewer bins where there are few values or many are equal; the first and last edges hold all.
    """
    bins = int(np.clip(len(values) // fewest_in_each, 1, most))
    # Ends that are values themselves, since a bin between two neighbouring ones would be empty.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1), method="higher"))
    return np.repeat(edges, 2) if len(edges) == 1 else edges


def places_in(edges: Floats, values: Floats) -> Whole:
    """Return the bin of each value, from 0; an inner edge belongs to the bin above it."""
    return np.searchsorted(edges[1:-1], values, side="right")


def _pairs_of(number: int, prediction: Prediction) -> Iterable[tuple[float, ...]]:
    for i, better in enumerate(prediction.responses):
        for j, worse in enumerate(prediction.responses):
            if better.score is not None and worse.score is not None and better.score > worse.score:
                margin, gap = better.reward - worse.reward, better.score - worse.score
                yield number, i, j, margin, gap, prediction.graded

"""From predictions to pairs, and shares of them with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pl_prefopt.metrics import bootstrap
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.report.predictions import Prediction

Floats: TypeAlias = npt.NDArray[np.float64]
Whole: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

_RESAMPLES = 1000
_CELLS = 4_000_000
"""Pairs of responses that are looked at together: what bounds the memory."""


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
        """1 where the margin is positive, 0.5 where it is 0."""
        return np.asarray((np.sign(self.margin) + 1) / 2)


class Estimate(NamedTuple):
    """A share of ``pairs`` pairs with its 95 % bootstrap interval over prompts, NaN for a single prompt."""

    value: float
    low: float
    high: float
    pairs: int


def find_pairs(predictions: Sequence[Prediction]) -> Pairs:
    """Return the pairs of the predictions, those of ``pairing.ALL_PAIRS``, in the order of the prompts."""
    found = [_pairs_among(predictions, numbers) for numbers in _of_one_size(predictions)]
    prompt, better, worse, margin, gap, graded = np.concatenate([np.empty((6, 0)), *found], axis=1)
    kept = np.isfinite(margin)
    order = np.lexsort((worse, better, prompt))
    order = order[kept[order]]
    return Pairs(
        prompt=prompt[order].astype(np.int64),
        better=better[order].astype(np.int64),
        worse=worse[order].astype(np.int64),
        margin=margin[order],
        gap=gap[order],
        graded=graded[order] > 0,
        left_out=int((~kept).sum()),
    )


def estimate(values: Floats, prompts: Whole) -> Estimate:
    """Return the mean of ``values`` [pairs] with its interval; prompts are drawn with all their pairs.

    Args:
        values: one number per pair, at least one.
        prompts: [pairs], which prompt each belongs to.
    """
    _, places = np.unique(prompts, return_inverse=True)
    sums, counts = np.bincount(places, weights=values), np.bincount(places).astype(np.float64)
    if len(sums) < 2:
        return Estimate(float(values.mean()), math.nan, math.nan, len(values))
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


def _of_one_size(predictions: Sequence[Prediction]) -> Iterator[Whole]:
    """Yield the places of predictions with equally many responses, few enough for a table of their pairs."""
    sizes = np.array([len(prediction.responses) for prediction in predictions], dtype=np.int64)
    for size in np.unique(sizes[sizes > 1]):
        places = np.flatnonzero(sizes == size)
        yield from np.array_split(places, math.ceil(len(places) * int(size) ** 2 / _CELLS))


def _pairs_among(predictions: Sequence[Prediction], numbers: Whole) -> Floats:
    """Return prompt, better, worse, margin, gap and graded [6, pairs] of predictions of one size."""
    rows = [predictions[number].responses for number in numbers]
    scores = np.array([[np.nan if one.score is None else one.score for one in row] for row in rows])
    rewards = np.array([[one.reward for one in row] for row in rows])
    graded = np.array([predictions[number].graded for number in numbers])
    compared = torch.as_tensor(scores, dtype=torch.float32)  # as in a batch, so that ties are the same
    row, better, worse = ALL_PAIRS(compared, torch.ones_like(compared, dtype=torch.bool)).nonzero().numpy().T
    with np.errstate(invalid="ignore"):  # two infinite rewards have no margin
        margin = rewards[row, better] - rewards[row, worse]
    gap = scores[row, better] - scores[row, worse]
    return np.stack([numbers[row], better, worse, margin, gap, graded[row]])

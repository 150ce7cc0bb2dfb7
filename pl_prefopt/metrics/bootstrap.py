"""The bootstrap over prompts: the sampling variation of a value over prompts of the same kind.

Prompts are sampled with replacement, as many as there are, each with all its pairs, since pairs of one prompt
share responses. A resample is represented by a weight per pair, the number of times its prompt was sampled,
so that all resamples are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]

Floats: TypeAlias = npt.NDArray[np.float64]
Whole: TypeAlias = npt.NDArray[np.int64]

_CELLS = 2_000_000
"""The size of one chunk of the table resamples × pairs, which bounds the memory."""


def resampled_weights(prompts: Whole, *, resamples: int, seed: int) -> Iterator[Whole]:
    """Yield the weights of the pairs in chunks [resamples of the chunk, pairs].

    Args:
        prompts: [pairs], the index of each pair's prompt, from 0 without gaps.
        resamples: the total number of resamples.
        seed: random seed of the samples.
    """
    generator, count = np.random.default_rng(seed), int(prompts.max()) + 1
    most = max(1, _CELLS // len(prompts))
    for start in range(0, resamples, most):
        piece = min(most, resamples - start)
        drawn = generator.integers(0, count, size=(piece, count))
        rows = np.arange(piece)[:, None] * count
        times = np.bincount((drawn + rows).ravel(), minlength=piece * count).reshape(piece, count)
        yield times[:, prompts]


def weighted_mean(values: Floats, weights: Whole) -> Floats:
    """Return the mean of ``values`` [pairs] under each row of ``weights`` [resamples, pairs]."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def weighted_pearson(first: Floats, second: Floats, weights: Whole) -> Floats:
    """Return Pearson's r of two [pairs] or [resamples, pairs] under each row of ``weights``."""
    total = weights.sum(axis=1, keepdims=True)
    first = first - (weights * first).sum(axis=1, keepdims=True) / total
    second = second - (weights * second).sum(axis=1, keepdims=True) / total
    product = (weights * first * second).sum(axis=1)
    spread = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
    return np.asarray(
        np.divide(product, np.sqrt(spread), out=np.full_like(product, np.nan), where=spread > 0)
    )


def weighted_spearman(first: Floats, second: Floats, weights: Whole) -> Floats:
    """Return Spearman's ρ of two [pairs] under each row of ``weights``, ranked anew in each."""
    return weighted_pearson(_weighted_ranks(first, weights), _weighted_ranks(second, weights), weights)


def weighted_kendall(first: Floats, second: Floats, weights: Whole) -> Floats:
    """Return Kendall's τ-b of two [pairs] under each row of ``weights``, one row after the other."""
    drawn = (np.repeat(np.arange(len(first)), row) for row in weights)
    return np.array([kendall(first[pairs], second[pairs]) for pairs in drawn])


def kendall(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """Return Kendall's τ-b in O(n log n); NaN for fewer than two values, or where one side is constant.

    >>> kendall(np.array([1.0, 2.0]), np.array([7.0, 3.0]))
    -1.0
    """
    if len(first) < 2:
        return float("nan")
    if len(first) == 2:  # SciPy would divide by 0 when computing the p-value
        agreement = float(np.sign(first[1] - first[0]) * np.sign(second[1] - second[0]))
        return agreement or float("nan")
    return float(stats.kendalltau(first, second, method="asymptotic").statistic)


def _weighted_ranks(values: Floats, weights: Whole) -> Floats:
    """Return the rank of each value [resamples, pairs], counting each as often as it is sampled."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(places, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    drawn = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(drawn, axis=1) - (drawn - 1) / 2
    return np.asarray(ranks[:, places], dtype=np.float64)

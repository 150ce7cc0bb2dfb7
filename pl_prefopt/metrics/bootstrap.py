"""The bootstrap over prompts: the sampling variation of a value over prompts of the same kind.

Prompts are sampled with replacement, as many as there are, each with all its pairs, since pairs of one prompt
share responses. A resample is represented by a weight per pair, the number of times its prompt was sampled,
so that all resamples are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]

Floats: TypeAlias = npt.NDArray[np.float64]
Whole: TypeAlias = npt.NDArray[np.int64]
_Places: TypeAlias = npt.NDArray[np.int32]

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
        yield times.take(prompts, axis=1)


def weighted_mean(values: Floats, weights: Whole) -> Floats:
    """Return the mean of ``values`` [pairs] under each row of ``weights`` [resamples, pairs]."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def weighted_pearson(first: Floats, second: Floats, weights: Whole) -> Floats:
    """Return Pearson's r of two [pairs] or [resamples, pairs] under each row of ``weights``.

    NaN where one side is constant.
    """
    first, first_spread = _centred(first, weights)
    second, second_spread = _centred(second, weights)
    product = (weights * first * second).sum(axis=1)
    spread = first_spread * second_spread
    return np.asarray(
        np.divide(product, np.sqrt(spread), out=np.full_like(product, np.nan), where=spread > 0)
    )


def _centred(values: Floats, weights: Whole) -> tuple[Floats, Floats]:
    """Return values minus their weighted mean, and the weighted sum of their squares [resamples].

    The sum is 0 where it has nothing but the rounding errors of equal values.
    """
    centred = values - (weights * values).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    squares, plain = ((weights * some**2).sum(axis=1) for some in (centred, values))
    return centred, np.where(squares > 1e-24 * plain, squares, 0.0)


class RankCorrelations:
    """Spearman's ρ and Kendall's τ-b of two [pairs] under any number of weights, sorted only once.

    Args:
        first: one value per pair.
        second: the other value.
    """

    def __init__(self, first: Floats, second: Floats) -> None:
        self._first, self._second = _Ties(first), _Ties(second)
        self._both = _Ties(self._first.places * len(self._second.begins) + self._second.places)
        sides = sorted((self._first, self._second), key=lambda side: len(side.begins))
        self._levels = list(_levels(few=sides[0].places, many=sides[1].places))

    def spearman(self, weights: Whole) -> Floats:
        """Return ρ under each row of ``weights`` [resamples, pairs], ranked anew in each."""
        return weighted_pearson(self._first.ranks(weights), self._second.ranks(weights), weights)

    def kendall(self, weights: Whole) -> Floats:
        """Return τ-b under each row of ``weights`` [resamples, pairs] in O(pairs · log pairs) per row.

        NaN for fewer than two pairs, or where one side is constant.
        """
        total = weights.sum(axis=1)
        every = total * (total - 1) // 2
        first, second, both = (ties.count(weights) for ties in (self._first, self._second, self._both))
        difference = every - first - second + both - 2 * self._discordant(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = difference / np.sqrt(every - first) / np.sqrt(every - second)
        return np.asarray(np.clip(values, -1.0, 1.0))

    def _discordant(self, weights: Whole) -> Whole:
        """Return how many pairs of pairs are in opposite orders on the two sides."""
        return np.array([self._discordant_once(row) for row in weights], dtype=np.int64)

    def _discordant_once(self, weights: Whole) -> int:
        count, upper = 0, np.zeros(len(weights) + 1, dtype=np.int64)
        for level in self._levels:
            weights = weights.take(level.order)
            np.cumsum(weights * level.upper, out=upper[1:])
            before = upper.take(level.until) - upper.take(level.since)
            count += int(weights.take(level.lower) @ before)
        return count


class _Ties:
    """Which of some values are equal.

    Attributes:
        places: for each value, the number of smaller distinct ones.
        begins: where each distinct value begins in sorted order.
    """

    def __init__(self, values: Floats | Whole) -> None:
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        self.places: Whole = places.astype(np.int64)
        self.begins: Whole = np.cumsum(counts) - counts
        self._order = np.argsort(places, kind="stable")

    def ranks(self, weights: Whole) -> Floats:
        """Return the rank of each value [resamples, pairs], counting each as often as it is sampled."""
        drawn = self._drawn(weights)
        ranks = np.cumsum(drawn, axis=1) - (drawn - 1) / 2
        return np.asarray(ranks.take(self.places, axis=1), dtype=np.float64)

    def count(self, weights: Whole) -> Whole:
        """Return the number of pairs of equal values [resamples]."""
        drawn = self._drawn(weights)
        return np.asarray((drawn * (drawn - 1) // 2).sum(axis=1))

    def _drawn(self, weights: Whole) -> Whole:
        return np.asarray(np.add.reduceat(weights.take(self._order, axis=1), self.begins, axis=1))


class _Level(NamedTuple):
    """A step of counting discordant pairs, in which the values that share their higher bits are compared.

    Attributes:
        order: where each value was in the order of the level before. Those that share their higher bits are
            now together, in the order of the other side.
        upper: whether the bit of each value is set.
        lower: the places of those whose bit isn't.
        since: for each of these, where those begin that share its higher bits.
        until: for each of these, where those end that share them and are smaller on the other side.
    """

    order: _Places
    upper: npt.NDArray[np.bool_]
    lower: _Places
    since: _Places
    until: _Places


def _levels(*, few: Whole, many: Whole) -> Iterator[_Level]:
    """Yield one level per bit of ``few``, the numbers of the side with fewer distinct values."""
    order = np.argsort(many, kind="stable")
    for bit in reversed(range(int(few.max(initial=0)).bit_length())):
        few, many = few[order], many[order]
        upper = (few >> bit) & 1 == 1
        lower = np.flatnonzero(~upper)
        changed = _changes(few >> (bit + 1))
        since, until = (_last_true(starts)[lower] for starts in (changed, changed | _changes(many)))
        yield _Level(order.astype(np.int32), upper, lower.astype(np.int32), since, until)
        order = np.argsort(few >> bit, kind="stable")


def _changes(values: Whole) -> npt.NDArray[np.bool_]:
    return np.asarray(np.diff(values, prepend=-1) != 0)


def _last_true(flags: npt.NDArray[np.bool_]) -> _Places:
    """Return for each place the last one up to it whose flag is true; the first is."""
    return np.asarray(np.maximum.accumulate(np.where(flags, np.arange(len(flags)), 0)), dtype=np.int32)


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

"""Means with bootstrap intervals that can be combined, as subsets into sections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pl_prefopt.metrics.bootstrap import Floats, resampled_weights, weighted_mean

RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number, and the same number of each bootstrap resample.

    Attributes:
        value: the number.
        samples: [resamples] values; all NaN where there are fewer than two rows to sample from.
        count: the number of rows that it is of.
    """

    value: float
    samples: Floats
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile interval; ``None`` if there is none."""
        if np.isnan(self.samples).any():
            return None
        low, high = np.quantile(self.samples, [0.025, 0.975])
        return float(low), float(high)

    def scaled(self, factor: float) -> Self:
        """Return the number times a factor."""
        return type(self)(self.value * factor, self.samples * factor, self.count)


def estimates(
    columns: npt.ArrayLike, *, seed: int = 0, prompts: Sequence[int] | None = None
) -> list[Estimate]:
    """Return the mean of each column, all resampled by the same rows.

    Args:
        columns: [rows, columns] numbers; a row is what is sampled: a prompt with everything about it.
        seed: random seed of the samples.
        prompts: the number of each row's prompt, from 0 without gaps, if prompts have several rows: they are
            sampled together.

    Examples:
        >>> [one.value for one in estimates([[1, 0], [1, 1]])]
        [1.0, 0.5]
    """
    values = np.asarray(columns, dtype=np.float64)
    rows, width = values.shape
    index = np.arange(rows) if prompts is None else np.asarray(prompts)
    if not rows or index.max() < 1:
        samples = np.full((RESAMPLES, width), np.nan)
    else:
        weights = resampled_weights(index, resamples=RESAMPLES, seed=seed)
        pieces = [np.stack([weighted_mean(column, one) for column in values.T], axis=1) for one in weights]
        samples = np.concatenate(pieces)
    return [Estimate(float(values[:, j].mean()), samples[:, j], rows) for j in range(width)]


def estimate(values: npt.ArrayLike, *, seed: int = 0, prompts: Sequence[int] | None = None) -> Estimate:
    """Return the mean of the rows' values, see ``estimates``."""
    (one,) = estimates(np.asarray(values, dtype=np.float64)[:, None], seed=seed, prompts=prompts)
    return one


def combine(parts: Iterable[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Return the weighted mean of estimates; without weights, all count alike.

    Resamples of the parts are paired by number: parts of one call of ``estimates`` share rows, and those of
    calls with different seeds are independent.

    Examples:
        >>> combine([estimate([1, 1]), estimate([0, 1])], [3, 1]).value
        0.875
    """
    parts = list(parts)
    shares = np.asarray(weights if weights is not None else [1.0] * len(parts), dtype=np.float64)
    shares = shares / shares.sum()
    samples = sum((share * part.samples for share, part in zip(shares, parts, strict=True)), np.zeros(1))
    value = float(sum(share * part.value for share, part in zip(shares, parts, strict=True)))
    return Estimate(value, np.asarray(samples), sum(part.count for part in parts))


def total(parts: Iterable[Estimate], weights: Sequence[float]) -> Estimate:
    """Return Σ weight × part, whose weights need not add up to 1."""
    return combine(parts, weights).scaled(sum(weights))

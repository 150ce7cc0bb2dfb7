"""How far judges agree with gold votes and with themselves, and what they are biased by. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]
from torchmetrics.functional.classification import multiclass_cohen_kappa

from pl_prefopt.errors import ConfigError
from pl_prefopt.metrics.bootstrap import Floats


def cohen_kappa(first: Sequence[object], second: Sequence[object]) -> float:
    """Return Cohen's κ of two raters who labelled the same items: agreement beyond chance.

    κ = (p_o − p_e) / (1 − p_e) with the observed agreement p_o and that of independent raters with the same
    shares of labels, p_e. NaN where both gave one label only. Rows where either is ``None`` or NaN are left
    out. Computed by torchmetrics, in float32.

    Examples:
        >>> cohen_kappa("AABB", "AABA")
        0.5
    """
    same_length(first, second)
    both = [(a, b) for a, b in zip(first, second, strict=True) if _is_known(a) and _is_known(b)]
    codes = {
        label: code for code, label in enumerate(dict.fromkeys(label for pair in both for label in pair))
    }
    if len(codes) < 2:
        return float("nan")
    one, other = (torch.tensor([codes[label] for label in labels]) for labels in zip(*both, strict=True))
    return float(multiclass_cohen_kappa(one, other, num_classes=len(codes)))


def _is_known(label: object) -> bool:
    return label is not None and label == label


def krippendorff_alpha(ratings: npt.ArrayLike, *, level: str = "nominal") -> float:
    """Return Krippendorff's α of any number of raters, with missing ratings.

    α = 1 − D_o / D_e: the observed mean distance of two ratings of one item over that of any two ratings.
    The distance is 1 for different values (``nominal``) or the square of their difference (``interval``).
    NaN where no item has two ratings or all ratings are equal.

    Args:
        ratings: [raters, items] numbers, NaN where there is no rating.
        level: ``nominal`` or ``interval``.

    Raises:
        ConfigError: for another level.

    Examples:
        >>> krippendorff_alpha([[1, 1, 2, 2], [1, 1, 2, 1]])  # 1 − (1/4) / (30/56)
        0.5333333333333333
    """
    if level not in ("nominal", "interval"):
        raise ConfigError(f"expected `level` to be nominal or interval, got '{level}'.")
    values = np.asarray(ratings, dtype=np.float64)
    values = values[:, (~np.isnan(values)).sum(axis=0) >= 2]
    known = values[~np.isnan(values)]
    if not len(known) or (known == known[0]).all():
        return float("nan")
    within = 0.0
    for column in values.T:
        rated = column[~np.isnan(column)]
        within += _distances(rated, level) / (len(rated) - 1)
    between = _distances(known, level) / (len(known) - 1)
    return 1 - within / between


def _distances(values: Floats, level: str) -> float:
    """Return the sum of the distances of all ordered pairs, in time that is linear after sorting."""
    number = len(values)
    if level == "interval":
        centred = values - values.mean()
        return float(2 * number * (centred**2).sum())
    _, counts = np.unique(values, return_counts=True)
    return float(number**2 - (counts**2).sum())


class PositionBias(NamedTuple):
    """What the order of two responses does to a judge.

    Attributes:
        first: the share of comparisons that the response shown first wins; ties count as 0.5. 0.5 is none.
        consistent: the share of pairs with the same verdict in both orders.
        swapped: the share of pairs whose verdict follows the place: the first one, or the second one, twice.
    """

    first: float
    consistent: float
    swapped: float


def position_bias(forward: npt.ArrayLike, backward: npt.ArrayLike) -> PositionBias:
    """Return the position bias of verdicts on the same pairs in both orders.

    Args:
        forward: [pairs] P(A better) where A is shown first.
        backward: [pairs] P(A better) where B is shown first. Pairs with NaN in either are left out.

    Raises:
        ConfigError: if the two are not of the same pairs, or no probabilities.

    Examples:
        A judge that always takes the first one, and a fair one:

        >>> position_bias([1.0, 1.0], [0.0, 0.0])
        PositionBias(first=1.0, consistent=0.0, swapped=1.0)
        >>> position_bias([1.0, 0.0], [1.0, 0.0])
        PositionBias(first=0.5, consistent=1.0, swapped=0.0)
    """
    effects = order_effects(forward, backward)
    effects = effects[~np.isnan(effects[:, 0])]
    if not len(effects):
        return PositionBias(float("nan"), float("nan"), float("nan"))
    return PositionBias(*map(float, effects.mean(axis=0)))


def order_effects(forward: npt.ArrayLike, backward: npt.ArrayLike) -> Floats:
    """Return the numbers of ``position_bias`` of each pair, [pairs, 3]; NaN where a verdict is unknown.

    Args:
        forward: as there.
        backward: as there.

    Raises:
        ConfigError: if the two are not of the same pairs, or no probabilities.

    Examples:
        >>> order_effects([0.9, 0.5], [0.2, 0.5]).tolist()
        [[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]
    """
    one, other = probabilities("forward", forward), probabilities("backward", backward)
    same_length(one, other)
    verdict, reverse = np.sign(one - 0.5), np.sign(other - 0.5)
    effects = np.stack([(2 + verdict - reverse) / 4, verdict == reverse, verdict * reverse < 0], axis=1)
    effects[np.isnan(verdict) | np.isnan(reverse)] = np.nan
    return effects


class LengthRegression(NamedTuple):
    """A logistic regression of verdicts on lengths.

    Attributes:
        coefficient: by how much the log-odds of being preferred rise per standard deviation of the difference
            of lengths; 0 is no bias.
        intercept: the log-odds at equal length; of pairs with a gold verdict, of agreeing with it.
        deviation: the standard error of the coefficient.
    """

    coefficient: float
    intercept: float
    deviation: float


def length_bias(
    preferred: npt.ArrayLike, length_gap: npt.ArrayLike, *, ridge: float = 0.0
) -> LengthRegression:
    """Return what the difference of lengths alone does to the probability that a response is preferred.

    P(first preferred) = σ(a + b · gap / std(gap)), by maximum likelihood.

    Args:
        preferred: [pairs] from 0 to 1: the verdict, or its probability. Pairs with NaN are left out.
        length_gap: [pairs] the length of the first response minus that of the second.
        ridge: a penalty ridge/2 · b², which a finite b needs where length decides every verdict.

    Raises:
        ConfigError: if there is no difference of lengths, or no finite maximum, or a value is out of range.

    Examples:
        Twice as often the longer one, four times out of six: b = log 2 at gaps of ±1.

        >>> found = length_bias([1, 1, 0, 0, 0, 1], [1, 1, 1, -1, -1, -1])
        >>> round(found.coefficient, 6), round(abs(found.intercept), 6)
        (0.693147, 0.0)
    """
    target, gap = probabilities("preferred", preferred), np.asarray(length_gap, dtype=np.float64)
    same_length(target, gap)
    if not ridge >= 0:
        raise ConfigError(f"expected `ridge` to be at least 0, got {ridge}.")
    known = ~(np.isnan(target) | np.isnan(gap))
    target, gap = target[known], gap[known]
    spread = float(np.std(gap)) if len(gap) else 0.0
    if not spread:
        raise ConfigError("length_bias needs pairs of different lengths, got none.")
    features = np.stack([np.ones_like(gap), gap / spread], axis=1)

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = features @ weights
        value = float((np.logaddexp(0.0, scores) - target * scores).sum() + ridge / 2 * weights[1] ** 2)
        slope = features.T @ (expit(scores) - target) + np.array([0.0, ridge * weights[1]])
        return value, slope

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 500})
    intercept, coefficient = (float(value) for value in found.x)
    chance = expit(features @ found.x)
    curvature = (features.T * (chance * (1 - chance))) @ features + np.diag([0.0, ridge])
    if not np.isfinite(found.x).all() or np.abs(found.x).max() > 20 or np.linalg.det(curvature) < 1e-12:
        raise ConfigError(
            "length_bias has no finite coefficient: length decides every verdict. Set `ridge`, such as 1."
        )
    return LengthRegression(coefficient, intercept, float(np.sqrt(np.linalg.inv(curvature)[1, 1])))


def self_preference(own: npt.ArrayLike, gold: Sequence[Sequence[float]]) -> float:
    """Return the DBG score of a judge (arXiv 2506.02592): how much it favours its own responses.

    The share of pairs in which the judge prefers its own response, minus the share in which the majority of
    gold votes does. Equal probabilities and equal numbers of votes count as 0.5. 0 is no bias; both models of
    a pair may be above it.

    Args:
        own: [pairs] the judge's probability that its own response is better, averaged over both orders.
        gold: for each pair the gold judges' votes: above 0.5 for the judge's own response, below for the
            other one, 0.5 for neither. Missing votes are NaN; pairs without a vote, and those with NaN in
            ``own``, are left out of both shares.

    Raises:
        ConfigError: if the two are not of the same pairs, or no probabilities.

    Examples:
        >>> self_preference([0.9, 0.5, 0.8], [[1, 1, 0], [0, 0, 1], [1, 0]])  # 2.5/3 − 1.5/3
        0.33333333333333337
    """
    mine = probabilities("own", own)
    same_length(mine, gold)
    votes = [probabilities("gold", one) for one in gold]
    votes = [one[~np.isnan(one)] for one in votes]
    known = [place for place, one in enumerate(votes) if len(one) and not np.isnan(mine[place])]
    if not known:
        return float("nan")
    theirs = np.array([np.sign(np.sign(votes[place] - 0.5).sum()) for place in known])
    return float(((np.sign(mine[known] - 0.5) + 1) / 2).mean() - ((theirs + 1) / 2).mean())


def reversal_accuracy(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the share of pairs that a judge gets right under both of two contexts with opposite labels.

    A judge that ignores the context is right under one of them only, and gets 0.

    Args:
        first: [pairs] P(A better) under the context in which A is right.
        second: [pairs] P(A better) under the context in which B is right. A tie is wrong, and so is an
            invalid answer, NaN.

    Examples:
        >>> reversal_accuracy([0.9, 0.9, 0.5], [0.2, 0.8, 0.1])
        0.3333333333333333
    """
    one, other = probabilities("first", first), probabilities("second", second)
    same_length(one, other)
    return float(((one > 0.5) & (other < 0.5)).mean()) if len(one) else float("nan")


def coverage(holds: Sequence[Sequence[bool]]) -> float:
    """Return the share of prompts with at least one response that has a property, such as a value it shows.

    The statistic of Community Alignment (arXiv 2507.09650), which compares sets of candidates: with
    negatively correlated sampling it rose from 15 % to 60 % for traditional values.

    Examples:
        >>> coverage([[False, True], [False, False]])
        0.5
    """
    return sum(map(any, holds)) / len(holds) if holds else float("nan")


def independent_coverage(share: float, responses: int) -> float:
    """Return the coverage of independent samples, 1 − (1 − p)ⁿ, against which sets are compared.

    Args:
        share: p, the share of single responses that have the property.
        responses: n, the size of a set.

    Examples:
        >>> round(independent_coverage(0.0398, 4), 3)
        0.15
    """
    (known,) = probabilities("share", [share])
    return float(1 - (1 - known) ** responses)


def probabilities(name: str, values: npt.ArrayLike) -> Floats:
    """Return values as an array, once all that are known are from 0 to 1; NaN stands for unknown ones.

    Raises:
        ConfigError: if one is not, such as a score in place of a probability.
    """
    found = np.asarray(values, dtype=np.float64)
    wrong = found[(found < 0) | (found > 1)]
    if len(wrong):
        raise ConfigError(f"expected `{name}` to be from 0 to 1, got {wrong[0]:g}.")
    return found


def same_length(first: Sequence[object] | Floats, second: Sequence[object] | Floats) -> None:
    """Raise a ``ConfigError`` unless two lists have the same length."""
    if len(first) != len(second):
        raise ConfigError(f"expected two lists of the same length, got {len(first)} and {len(second)}.")

"""Strengths from matches: Bradley-Terry, Elo and TrueSkill, and the AUC of what they are used for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]
from scipy.stats import norm, rankdata  # type: ignore[import-untyped]

from pl_prefopt.errors import ConfigError
from pl_prefopt.metrics.agreement import probabilities, same_length
from pl_prefopt.metrics.bootstrap import Floats

Match: TypeAlias = tuple[int, int, float]
"""Two players, and the first one's result: 1 for a win, 0.5 for a draw, 0 for a loss."""


def bradley_terry(matches: Iterable[Match], players: int, *, ridge: float = 0.0) -> Floats:
    """Return the strengths s with P(i beats j) = σ(s_i − s_j) by maximum likelihood; their mean is 0.

    At the maximum each player's expected number of wins is the observed one. It is finite only where the wins
    connect all players: from each one a chain of wins leads to every other. Elsewhere a ridge is needed.

    Args:
        matches: the matches.
        players: their number.
        ridge: a penalty ridge/2 · Σ s².

    Raises:
        ConfigError: if the wins don't connect the players and there is no ridge, or a match is invalid.

    Examples:
        Three wins to one are log 3 apart:

        >>> bradley_terry([(0, 1, 1), (0, 1, 1), (0, 1, 1), (0, 1, 0)], 2).round(4).tolist()
        [0.5493, -0.5493]
    """
    wins = _wins(matches, players)
    if not ridge and not is_connected(wins):
        raise ConfigError(
            "the strengths are not finite: some players only win against, or never meet, the others. Set "
            "`ridge`, such as 0.1, or add matches."
        )
    games, won = wins + wins.T, wins.sum(axis=1)
    strengths = np.zeros(players)
    for _ in range(1000):
        expected = games * expit(strengths[:, None] - strengths[None, :])
        slope = won - expected.sum(axis=1) - ridge * strengths
        weights = expected * (1 - expit(strengths[:, None] - strengths[None, :]))
        curvature = np.diag(weights.sum(axis=1) + ridge) - weights
        # Adding a constant to all strengths changes nothing; this term takes that direction out.
        step = np.linalg.solve(curvature + 1 / players, slope)
        strengths = strengths + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-12:
            break
    return np.asarray(strengths - strengths.mean())


def _wins(matches: Iterable[Match], players: int) -> Floats:
    wins = np.zeros((players, players))
    for first, second, result in _checked(matches, players):
        wins[first, second] += result
        wins[second, first] += 1 - result
    return wins


def _checked(matches: Iterable[Match], players: int) -> Iterator[Match]:
    for first, second, result in matches:
        if not (0 <= first < players and 0 <= second < players and first != second and 0 <= result <= 1):
            raise ConfigError(
                f"expected two different players from 0 to {players - 1} and a result from 0 to 1, got "
                f"({first}, {second}, {result})."
            )
        yield first, second, result


def is_connected(wins: npt.ArrayLike) -> bool:
    """Return whether a chain of wins leads from each player to every other.

    Args:
        wins: [players, players] how often the row's player won against the column's.

    Examples:
        >>> is_connected([[0, 1], [1, 0]]), is_connected([[0, 2], [0, 0]])
        (True, False)
    """
    found = connected_components(csr_array(np.asarray(wins) > 0), directed=True, connection="strong")
    return int(found[0]) <= 1


def elo(matches: Iterable[Match], players: int, *, k: float = 32.0, start: float = 1000.0) -> Floats:
    """Return Elo ratings after the matches in their order; their sum never changes.

    The winner gains k (1 − E) with E = 1 / (1 + 10^((other − own) / 400)).

    Args:
        matches: the matches; the order matters.
        players: their number.
        k: the largest change per match.
        start: everyone's first rating.

    Raises:
        ConfigError: if a match is invalid.

    Examples:
        >>> elo([(0, 1, 1)], 2).tolist()
        [1016.0, 984.0]
    """
    ratings = np.full(players, float(start))
    for first, second, result in _checked(matches, players):
        expected = 1 / (1 + 10 ** ((ratings[second] - ratings[first]) / 400))
        change = k * (result - expected)
        ratings[first] += change
        ratings[second] -= change
    return ratings


def trueskill(
    matches: Iterable[Match],
    players: int,
    *,
    mean: float = 25.0,
    deviation: float = 25.0 / 3,
    beta: float = 25.0 / 6,
    tau: float = 25.0 / 300,
    draw_probability: float = 0.10,
) -> Floats:
    """Return [players, 2] means and standard deviations of TrueSkill (Herbrich et al. 2006), one against one.

    The defaults are the published ones. Order the players by the mean, or cautiously by mean − 3 deviations.

    Args:
        matches: the matches; the order matters. A result of 0.5 is a draw, others count as win or loss.
        players: their number.
        mean: everyone's first mean.
        deviation: everyone's first standard deviation.
        beta: the standard deviation of a performance around the skill.
        tau: by how much skills drift between matches.
        draw_probability: the share of draws among equals.

    Raises:
        ConfigError: if a match is invalid.

    Examples:
        The published example of two new players, the first of whom wins:

        >>> trueskill([(0, 1, 1)], 2).round(3).tolist()
        [[29.396, 7.171], [20.604, 7.171]]
    """
    means, variances = np.full(players, mean), np.full(players, deviation**2)
    margin = norm.ppf((draw_probability + 1) / 2) * math.sqrt(2) * beta
    for first, second, result in _checked(matches, players):
        winner, loser = (first, second) if result >= 0.5 else (second, first)
        spread = variances[[winner, loser]] + tau**2
        scale = math.sqrt(2 * beta**2 + spread.sum())
        gap, edge = (means[winner] - means[loser]) / scale, margin / scale
        shift, shrink = _drawn(gap, edge) if result == 0.5 else _won(gap - edge)
        means[winner] += spread[0] / scale * shift
        means[loser] -= spread[1] / scale * shift
        variances[[winner, loser]] = spread * (1 - spread / scale**2 * shrink)
    return np.stack([means, np.sqrt(variances)], axis=1)


def _won(gap: float) -> tuple[float, float]:
    """Return mean shift v and variance shrinkage w of a standard normal truncated below −gap."""
    shift = math.exp(norm.logpdf(gap) - norm.logcdf(gap))
    return shift, shift * (shift + gap)


def _drawn(gap: float, edge: float) -> tuple[float, float]:
    """Return the same for one truncated to [−edge, edge] around the gap."""
    share = max(norm.cdf(edge - gap) - norm.cdf(-edge - gap), 1e-300)
    low, high = norm.pdf(-edge - gap), norm.pdf(edge - gap)
    shift = float((low - high) / share)
    return shift, float(shift**2 + ((edge - gap) * high + (edge + gap) * low) / share)


def selective_auc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Return the AUC of selective classification: the accuracy on the most confident share, over all shares.

    The mean over n = 1 … N of the accuracy on the n answers of the highest confidence; answers of equal
    confidence are taken in a random order, on average. Relative confidence (arXiv 2502.01126) compares it for
    confidences from matches ("which of the two are you surer of?") and others.

    Args:
        confidence: [answers] numbers in any unit.
        correct: [answers] whether each is right.

    Raises:
        ConfigError: if the two are not of the same answers, or a confidence is NaN.

    Examples:
        The right one first: accuracies 1 and 1/2. The other way round, 0 and 1/2.

        >>> selective_auc([0.9, 0.1], [True, False]), selective_auc([0.1, 0.9], [True, False])
        (0.75, 0.25)
    """
    sureness, right = np.asarray(confidence, dtype=np.float64), probabilities("correct", correct)
    same_length(sureness, right)
    if np.isnan(sureness).any():
        raise ConfigError("expected a number as each `confidence`, got NaN: leave such answers out.")
    ranked = rankdata(-sureness, method="min")
    # Among ties every answer counts with the mean of the tie.
    shared = np.array([right[ranked == rank].mean() for rank in np.sort(ranked)])
    return float((np.cumsum(shared) / np.arange(1, len(shared) + 1)).mean()) if len(shared) else float("nan")


def relative_confidence(
    matches: Sequence[Match], questions: int, *, method: str, ridge: float = 0.0
) -> Floats:
    """Return confidences from matches between questions by ``bradley_terry``, ``elo`` or ``trueskill``.

    Args:
        matches: two questions each, and whether the model is surer of the first.
        questions: their number.
        method: the name of the function.
        ridge: that of ``bradley_terry``.

    Raises:
        ConfigError: for another method.
    """
    if method == "bradley_terry":
        return bradley_terry(matches, questions, ridge=ridge)
    if method == "elo":
        return elo(matches, questions)
    if method == "trueskill":
        return trueskill(matches, questions)[:, 0]
    raise ConfigError(f"expected `method` to be bradley_terry, elo or trueskill, got '{method}'.")

"""AlpacaEval 2 (Dubois et al., arXiv 2404.04475) from stored annotations."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, xlogy  # type: ignore[import-untyped]

from pl_prefopt.benchmarks.estimates import Estimate, estimate
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.data.file_readers import Record
from pl_prefopt.errors import DataError, first_line, listed, printable
from pl_prefopt.metrics.bootstrap import Floats, resampled_weights

PROMPTS = 805
COLUMNS = ("output_1", "output_2", "preference")
GAMED_WEIGHT = 0.2
"""The published weight of the two gamed baselines together, against the model's own annotations."""
FOLDS = 5
STRENGTHS: tuple[float, ...] = tuple(np.logspace(-4, 4, 10).tolist())
"""The strengths C among which cross-validation chooses, scikit-learn's default."""
RESAMPLES = 200
"""Resamples of the length-controlled win rate, each of which fits the regression."""
_STEPS = 100  # Newton steps; a few are enough
_GAMED = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations of one model against a baseline.

    Attributes:
        preference: [rows] from 0 to 1, 1 where the model's output is preferred; NaN where there is none.
        length_gap: [rows] characters of the baseline's output minus those of the model's.
    """

    preference: Floats
    length_gap: Floats


@dataclass(frozen=True, eq=False)
class Gamed:
    """The published file ``df_gamed.csv``: two baselines whose verbosity was prompted, and difficulties.

    Attributes:
        preference: [rows] in [0, 1].
        std_length_gap: [rows] the standardised difference of lengths.
        difficulty: [rows] the difficulty of each row's prompt.
        of_prompt: the difficulty by the number of the prompt.
    """

    preference: Floats
    std_length_gap: Floats
    difficulty: Floats
    of_prompt: Mapping[int, float]


def read_annotations(records: Sequence[Record]) -> Annotations:
    """Return annotations in the format of AlpacaEval's ``annotations.json``.

    ``preference`` is a number from 1 (the baseline, ``output_1``) to 2 (the model, ``output_2``); 0 is a
    draw, and null a failed annotation.

    Raises:
        DataError: naming the row, if a column is missing or a value can't be used.
    """
    preference, gap = [], []
    for record in records:
        if record.problem:
            raise DataError(f"{record.origin}: {record.problem}; fix the row.")
        missing = [name for name in COLUMNS if name not in record.fields]
        if missing:
            raise DataError(
                f"{record.origin}: the column '{missing[0]}' of AlpacaEval's annotations is missing; the row "
                f"has {listed(record.fields)}."
            )
        preference.append(_preference(record))
        gap.append(len(_output(record, "output_1")) - len(_output(record, "output_2")))
    return Annotations(np.asarray(preference, dtype=np.float64), np.asarray(gap, dtype=np.float64))


def _output(record: Record, name: str) -> str:
    value = record.fields[name]
    if not isinstance(value, str):
        raise DataError(f"{record.origin}: expected '{name}' to be a text, got {printable(repr(value))}.")
    return value


def _preference(record: Record) -> float:
    value: Any = record.fields["preference"]
    if value is None or value != value:
        return float("nan")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value == 0 or 1 <= value <= 2):
        raise DataError(
            f"{record.origin}: expected 'preference' to be a number from 1 to 2, 0 or null, got "
            f"{printable(repr(value))}."
        )
    return 0.5 if value == 0 else float(value) - 1


def read_gamed(path: Path) -> Gamed:
    """Read the published file ``df_gamed.csv``.

    Raises:
        DataError: if it can't be read, lacks a column or has a value that is not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"expected AlpacaEval's df_gamed.csv at {path}, got: {first_line(error)}.") from error
    missing = [name for name in _GAMED if not rows or name not in rows[0]]
    if missing:
        raise DataError(f"{path} lacks the column '{missing[0]}': is it AlpacaEval's df_gamed.csv?")
    try:
        columns = {name: np.asarray([float(row[name]) for row in rows]) for name in _GAMED[:-1]}
    except ValueError as error:
        raise DataError(f"{path} has a value that is not a number: {first_line(error)}.") from error
    if any(row["not_gamed_baseline"] != "False" for row in rows) or not _are_shares(columns["preference"]):
        raise DataError(
            f"{path}: expected gamed baselines only, with preferences from 0 to 1: is it AlpacaEval's "
            "df_gamed.csv?"
        )
    of_prompt = dict(
        zip(columns["index"].astype(int).tolist(), columns["instruction_difficulty"], strict=True)
    )
    return Gamed(
        columns["preference"], columns["std_delta_len"], columns["instruction_difficulty"], of_prompt
    )


def _are_shares(values: Floats) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def score(annotations: Annotations, gamed: Gamed | None, *, partial: bool = False) -> Result:
    """Return the win rates.

    Args:
        annotations: those of all prompts in the published order.
        gamed: the file that the length-controlled win rate needs.
        partial: whether a part of the prompts will do; there is no length-controlled win rate of a part.

    Raises:
        DataError: if there are not as many prompts as published.
    """
    rows = len(annotations.preference)
    if rows != PROMPTS and not partial:
        raise DataError(
            f"expected the annotations of {PROMPTS} prompts, got {rows}; type --partial for the win rate of "
            "these."
        )
    known = annotations.preference[~np.isnan(annotations.preference)]
    if not len(known):
        raise DataError("expected annotations with a preference, got none.")
    table = {"win rate": estimate(known, seed=51), "discrete win rate": estimate(discrete(known), seed=51)}
    notes: tuple[str, ...] = ()
    if gamed is None or rows != PROMPTS:
        notes = (f"The length-controlled win rate needs all {PROMPTS} prompts and df_gamed.csv (--gamed).",)
    else:
        table["length-controlled win rate"] = length_controlled(annotations, gamed)
    counts = {
        "prompts": rows,
        "without a preference": rows - len(known),
        "wins": int((known > 0.5).sum()),
        "losses": int((known < 0.5).sum()),
        "draws": int((known == 0.5).sum()),
    }
    overall = table.get("length-controlled win rate")
    return Result(
        title="AlpacaEval 2", overall=overall, tables={"win rates": table}, counts=counts, notes=notes
    )


def discrete(preference: Floats) -> Floats:
    """Return 1 for each win, 0 for each loss and 0.5 for each draw.

    Examples:
        >>> discrete(np.array([0.9, 0.4, 0.5])).tolist()
        [1.0, 0.0, 0.5]
    """
    return np.asarray((np.sign(preference - 0.5) + 1) / 2)


def length_controlled(annotations: Annotations, gamed: Gamed, *, resamples: int = RESAMPLES) -> Estimate:
    """Return the length-controlled win rate: what a regression predicts if both outputs were equally long.

    P(model preferred) = σ(φ tanh(length gap / its standard deviation) + ψ difficulty + θ), fitted to the
    model's annotations (weight 1) and those of the two gamed baselines (weight 0.1 each, without θ) with an
    L1 penalty whose strength 5-fold cross-validation chooses. The win rate is the mean of the prediction with
    a gap of 0.

    Published without an interval. Ours resamples the prompts with all that is said about them, and fits the
    regression again at the strength that was chosen for all prompts; the gamed baselines stay as they are.

    Args:
        annotations: those of all prompts; row i is prompt i of the difficulties.
        gamed: the gamed baselines.
        resamples: how many times the prompts are resampled.
    """
    rows = len(annotations.preference)
    difficulty = np.asarray([gamed.of_prompt[number] for number in range(rows)])
    known = ~np.isnan(annotations.preference)
    others = np.stack([np.tanh(gamed.std_length_gap), gamed.difficulty, 0 * gamed.difficulty], axis=1)
    target = np.concatenate([gamed.preference, annotations.preference[known]])

    def problem(times: Floats) -> tuple[Floats, Floats, Floats]:
        """Return features, target and weights where each prompt occurs so many times."""
        centre = np.average(annotations.length_gap, weights=times)
        spread = np.sqrt((times @ (annotations.length_gap - centre) ** 2) / (times.sum() - 1))
        gaps = annotations.length_gap / spread if spread else annotations.length_gap
        own = np.stack([np.tanh(gaps), difficulty, np.ones(rows)], axis=1)
        weight = np.concatenate([np.full(len(others), GAMED_WEIGHT / 2), times[known]])
        return np.concatenate([others, own[known]]), target, weight

    def win_rate(found: Floats, times: Floats) -> float:
        return float(np.average(expit(found[1] * difficulty + found[2]), weights=times))

    once = np.ones(rows)
    strength = cross_validated_strength(*problem(once))
    found = fit(*problem(once), strength)
    pieces = resampled_weights(np.arange(rows), resamples=resamples, seed=52)
    drawn = [times.astype(np.float64) for piece in pieces for times in piece]
    samples = [win_rate(fit(*problem(times), strength, start=found), times) for times in drawn]
    return Estimate(win_rate(found, once), np.asarray(samples), rows)


def cross_validated_strength(features: Floats, target: Floats, weight: Floats) -> float:
    """Return the strength C with the lowest mean log loss over held-out folds.

    Folds are dealt as scikit-learn's ``GroupKFold`` does with one group per row.
    """
    fold = np.empty(len(target), dtype=np.int64)
    fold[np.argsort(np.ones(len(target), dtype=np.int64))[::-1]] = np.arange(len(target)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for number in range(FOLDS):
        inside, outside = fold != number, fold == number
        for place, strength in enumerate(STRENGTHS):
            found = fit(features[inside], target[inside], weight[inside], strength)
            losses[place] += _log_loss(features[outside] @ found, target[outside], weight[outside])
    return STRENGTHS[int(np.argmin(losses))]


def fit(
    features: Floats, target: Floats, weight: Floats, strength: float, *, start: Floats | None = None
) -> Floats:
    """Return argmin_w ‖w‖₁ + C Σ weight · (cross-entropy of target and σ(features · w)), without intercept.

    Args:
        features: [rows, J].
        target: [rows] probabilities.
        weight: [rows].
        strength: C; larger values penalise less.
        start: coefficients to start from; the result is the same.
    """
    found = np.zeros(features.shape[1]) if start is None else start
    penalty = 1 / strength
    for _ in range(_STEPS):
        chance = expit(features @ found)
        slope = features.T @ (weight * (chance - target))
        curvature = (features.T * (weight * chance * (1 - chance))) @ features
        step = _penalised_step(found, slope, curvature + 1e-12 * np.eye(len(found)), penalty)
        shrink = 1.0
        before = _penalised_loss(found, features, target, weight, penalty)
        while (
            _penalised_loss(found + shrink * step, features, target, weight, penalty) > before
            and shrink > 1e-8
        ):
            shrink /= 2
        found = found + shrink * step
        if np.abs(step).max() < 1e-10:
            break
    return found


def _penalised_step(found: Floats, slope: Floats, curvature: Floats, penalty: float) -> Floats:
    """Return argmin_d slope · d + ½ d · curvature d + penalty ‖found + d‖₁, by coordinate descent."""
    step = np.zeros_like(found)
    for _ in range(1000):
        largest = 0.0
        for j in range(len(step)):
            pull = slope[j] + curvature[j] @ step
            # Where the quadratic alone would put coordinate j, shrunk towards 0 by the penalty.
            goal = found[j] + step[j] - pull / curvature[j, j]
            goal = np.sign(goal) * max(abs(goal) - penalty / curvature[j, j], 0.0)
            change = goal - found[j] - step[j]
            step[j] += change
            largest = max(largest, abs(change))
        if largest < 1e-13:
            break
    return step


def _penalised_loss(found: Floats, features: Floats, target: Floats, weight: Floats, penalty: float) -> float:
    scores = features @ found
    return float(weight @ (np.logaddexp(0.0, scores) - target * scores) + penalty * np.abs(found).sum())


def _log_loss(scores: Floats, target: Floats, weight: Floats) -> float:
    shares = np.clip(expit(scores), 1e-15, 1 - 1e-15)
    return float(-(weight * (xlogy(target, shares) + xlogy(1 - target, 1 - shares))).mean())

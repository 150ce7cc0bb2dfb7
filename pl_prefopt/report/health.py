"""Checks of a run at a glance: green, amber or red, each with its number.

The limits are conventions: a red check is a reason to look, and a green one is no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pl_prefopt.report.curves import Curve
from pl_prefopt.report.pairs import Floats, Whole, estimate
from pl_prefopt.report.subjects import Subject

Colour = Literal["green", "amber", "red"]
_FEWEST = 10
"""Prompts with pairs, or responses, below which nothing is said."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a run.

    Attributes:
        name: what is checked.
        colour: the verdict.
        told: the number, and what it means.
        anchor: the section of the page to look at.
    """

    name: str
    colour: Colour
    told: str
    anchor: str


def health(subject: Subject) -> list[Check]:
    """Return the checks for which the run has numbers."""
    return [check for find in _CHECKS for check in find(subject)]


def _accuracy(subject: Subject) -> Iterator[Check]:
    pairs = subject.pairs
    if len(np.unique(pairs.prompt)) < _FEWEST:
        return
    found = estimate(pairs.right, pairs.prompt)
    colour: Colour = "green" if found.low > 0.5 else "red" if found.high < 0.5 else "amber"
    words = {"green": "better than chance", "amber": "compatible with chance", "red": "worse than chance"}
    interval = f"95 % interval {found.low:.0%} to {found.high:.0%}"
    told = f"{found.value:.0%} of {found.pairs:,} pairs ({interval}): {words[colour]}"
    yield Check("Accuracy", colour, told, "rewards")


def _length(subject: Subject) -> Iterator[Check]:
    """Compare the correlation of reward and length with that of the data's own scores and length.

    Among the responses to each prompt, since rewards of different prompts may be apart by any constant.
    """
    kept = [
        (number, one.length, one.reward, one.score)
        for number, item in enumerate(subject.predictions)
        for one in item.responses
        if one.score is not None and np.isfinite(one.reward)
    ]
    if len(kept) < _FEWEST:
        return
    prompts, *columns = np.array(kept, dtype=np.float64).T
    length, reward, score = (_within(values, prompts.astype(np.int64)) for values in columns)
    if not (length.any() and reward.any() and score.any()):
        return
    of_reward, of_score = (float(np.corrcoef(length, values)[0, 1]) for values in (reward, score))
    beyond = abs(of_reward - of_score)
    colour: Colour = "green" if beyond <= 0.15 else "amber" if beyond <= 0.3 else "red"
    told = (
        f"among a prompt's responses, r of reward and length is {of_reward:.2f}, that of the data's scores "
        f"and length {of_score:.2f}"
    )
    yield Check("Length bias", colour, told, "rewards")


def _within(values: Floats, prompts: Whole) -> Floats:
    """Return values minus their prompt's mean; all exactly 0 where they differ by rounding errors only."""
    sums, counts = np.bincount(prompts, weights=values), np.bincount(prompts)
    centred = values - sums[prompts] / counts[prompts]
    return np.where(np.abs(centred) > 1e-9 * np.abs(values).max(), centred, 0.0)


def _chosen(subject: Subject) -> Iterator[Check]:
    curve = _curve(subject, "val/chosen_logp", 2)
    if curve is None:
        return
    first, last = float(curve.values[0]), float(curve.values[-1])
    fall = (first - last) / max(abs(first), 1e-9)
    colour: Colour = "green" if fall <= 0.05 else "amber" if fall <= 0.5 else "red"
    word = "steady" if colour == "green" else "falls: the better response becomes less likely, too"
    yield Check("Chosen log-prob", colour, f"{first:.1f} to {last:.1f} nats: {word}", "curves")


def _overfitting(subject: Subject) -> Iterator[Check]:
    """Compare the last validation loss with the lowest one."""
    curve = _curve(subject, "val/loss", 3)
    if curve is None:
        return
    first, lowest, last = float(curve.values[0]), float(curve.values.min()), float(curve.values[-1])
    gained, lost = first - lowest, last - lowest
    colour: Colour = "green" if lost <= 0.1 * gained else "amber" if last < first else "red"
    word = {"green": "still near its lowest", "amber": "rising again", "red": "no lower than at first"}[
        colour
    ]
    yield Check("Overfitting", colour, f"validation loss {last:.4g}, lowest {lowest:.4g}: {word}", "curves")


def _drift(subject: Subject) -> Iterator[Check]:
    """Compare how far the responses of a pair moved apart with how far both moved from the reference."""
    run = subject.run
    evaluation = run.evaluation("val")
    names = ("val/log_ratio_margin_0", "val/log_ratio_0")
    margin, ratio = (run.metrics.get(name, float("nan")) for name in names)
    if evaluation is None or evaluation.step == 0 or not np.isfinite([margin, ratio]).all():
        return
    moved = abs(ratio)
    colour: Colour = "green" if moved <= max(1.0, margin) else "amber" if moved <= 3 * margin else "red"
    words = {
        "green": "responses move apart more than away from the reference",
        "amber": "responses move away from the reference more than apart",
        "red": "responses move away from the reference and hardly apart",
    }
    told = f"log-ratio margin {margin:.2f} nats, mean log-ratio {ratio:.2f} nats: {words[colour]}"
    yield Check("Margin against KL", colour, told, "numbers")


def _rows(subject: Subject) -> Iterator[Check]:
    """Count training rows without effect, and truncated ones."""
    counts = subject.run.facts.rows.get("train") if subject.run.facts else None
    if not counts or not counts["rows"]:
        return
    rows, skipped, unused = (counts[name] for name in ("rows", "skipped", "unused"))
    told = f"{skipped:,} of {rows + skipped:,} training rows unreadable, {unused:,} without a comparison"
    yield Check("Unused rows", _of_share((skipped + unused) / (rows + skipped)), told, "runs")
    prompts, responses = (counts[f"truncated_{name}"] for name in ("prompts", "responses"))
    share = max(prompts / rows, responses / counts["responses"])
    told = f"{prompts:,} of {rows:,} prompts and {responses:,} of {counts['responses']:,} responses truncated"
    yield Check("Truncation", _of_share(share), told, "runs")


def _of_share(share: float) -> Colour:
    return "green" if share <= 0.01 else "amber" if share <= 0.1 else "red"


def _throughput(subject: Subject) -> Iterator[Check]:
    curve = _curve(subject, "train/tokens_per_second", 8)
    if curve is None:
        return
    quarter = len(curve.values) // 4
    early, late = (float(np.median(part)) for part in (curve.values[:quarter], curve.values[-quarter:]))
    colour: Colour = "green" if late >= 0.8 * early else "amber" if late >= 0.5 * early else "red"
    yield Check("Throughput", colour, f"{early:,.0f} to {late:,.0f} tokens per second", "curves")


def _curve(subject: Subject, name: str, fewest: int) -> Curve | None:
    curve = subject.run.curves.get(name)
    if curve is None or len(curve.values) < fewest or not np.isfinite(curve.values).all():
        return None
    return curve


_CHECKS: tuple[Callable[[Subject], Iterator[Check]], ...] = (
    _accuracy,
    _drift,
    _chosen,
    _length,
    _overfitting,
    _rows,
    _throughput,
)

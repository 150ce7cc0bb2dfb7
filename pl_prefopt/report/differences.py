"""Differences between runs, by a bootstrap over the prompts that they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pl_prefopt.report.pairs import Estimate, Floats, Whole, estimate
from pl_prefopt.report.subjects import Subject

_ALL_PAIRS_OF = 4
"""Up to so many runs are compared each with each, more of them with the first alone."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One run minus another.

    Attributes:
        run: the run.
        baseline: the one that is subtracted.
        prompts: the number of prompts that both have, with the same responses and scores, and with pairs.
        left_out: the number of prompts that only one of them has.
        estimates: by metric, with 95 % intervals; ``None`` where it was not measured or does not compare.
    """

    run: Subject
    baseline: Subject
    prompts: int
    left_out: int
    estimates: Mapping[str, Estimate | None]


METRICS = {
    "accuracy": "Share of pairs in which the better response has the higher reward.",
    "ranking_accuracy": "Share of pairs in which the policy gives the better response the higher log-prob.",
    "margin": "Mean reward margin, in nats; only of runs with the same settings of the objective.",
}
"""What is compared, with its meaning."""


def differences(subjects: Sequence[Subject]) -> list[Difference]:
    """Return the differences between runs with predictions: each with each, or of many with the first."""
    found = [subject for subject in subjects if subject.predictions]
    keyed = {id(subject): _by_text(subject) for subject in found}
    couples = list(combinations(found, 2))
    if len(found) > _ALL_PAIRS_OF:
        couples = [(found[0], other) for other in found[1:]]
    return [_difference(run, baseline, keyed[id(run)], keyed[id(baseline)]) for baseline, run in couples]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt's place among the predictions, and the place of each response in an order of their texts."""

    number: int
    places: Sequence[int]


def _by_text(subject: Subject) -> dict[Hashable, _Prompt]:
    """Return the prompts by what must be the same in another run, repeated ones also by a number."""
    found: dict[Hashable, _Prompt] = {}
    seen: Counter[Hashable] = Counter()
    for number, item in enumerate(subject.predictions):
        told = [(one.messages, one.score) for one in item.responses]
        order = sorted(range(len(told)), key=lambda place: repr(told[place]))
        key = item.prompt, tuple(told[place] for place in order)
        seen[key] += 1
        found[key, seen[key]] = _Prompt(number, np.argsort(order).tolist())
    return found


def _difference(
    run: Subject, baseline: Subject, own: dict[Hashable, _Prompt], other: dict[Hashable, _Prompt]
) -> Difference:
    common = [key for key in other if key in own]
    places = [_pair_places(one, [by[key] for key in common]) for one, by in ((run, own), (baseline, other))]
    shared = [key for key in places[1] if key in places[0]]  # pairs that have a margin in both
    prompts = np.array([prompt for prompt, _, _ in shared], dtype=np.int64)
    first, second = (np.array([of[key] for key in shared], dtype=np.int64) for of in places)
    estimates: dict[str, Estimate | None] = dict.fromkeys(METRICS)
    if shared:
        values = [_values(run, first), _values(baseline, second)]
        for name in METRICS:
            one, minus = (of[name] for of in values)
            if one is not None and minus is not None:
                estimates[name] = estimate(one - minus, prompts)
        if run.run.objective != baseline.run.objective:
            estimates["margin"] = None
    return Difference(
        run=run,
        baseline=baseline,
        prompts=len(np.unique(prompts)),
        left_out=len(own) + len(other) - 2 * len(common),
        estimates=estimates,
    )


def _pair_places(subject: Subject, prompts: Sequence[_Prompt]) -> dict[tuple[int, int, int], int]:
    """Return where each pair of ``prompts`` is, by its prompt's and its responses' ordered places."""
    known = {prompt.number: (place, prompt.places) for place, prompt in enumerate(prompts)}
    pairs = subject.pairs
    columns = zip(pairs.prompt.tolist(), pairs.better.tolist(), pairs.worse.tolist(), strict=True)
    found = {}
    for place, (number, better, worse) in enumerate(columns):
        if number in known:
            prompt, places = known[number]
            found[prompt, places[better], places[worse]] = place
    return found


def _values(subject: Subject, chosen: Whole) -> dict[str, Floats | None]:
    """Return the numbers of the pairs at ``chosen``; ``None`` where there are none."""
    pairs = subject.pairs
    return {
        "accuracy": pairs.right[chosen],
        "ranking_accuracy": _ranked_right(subject, chosen),
        "margin": pairs.margin[chosen],
    }


def _ranked_right(subject: Subject, chosen: Whole) -> Floats | None:
    """Return whether the better response has the higher log-prob; ``None`` unless all have finite ones."""
    pairs, gaps = subject.pairs, []
    for place in chosen.tolist():
        responses = subject.predictions[int(pairs.prompt[place])].responses
        better, worse = responses[int(pairs.better[place])], responses[int(pairs.worse[place])]
        if better.log_prob is None or worse.log_prob is None:
            return None
        gaps.append(better.log_prob - worse.log_prob)
    found = np.array(gaps, dtype=np.float64)
    return np.asarray((np.sign(found) + 1) / 2) if np.isfinite(found).all() else None

"""One page across rounds: curves of what was measured, and texts."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.files import atomic_write
from pl_prefopt.generation import read_shards
from pl_prefopt.rounds.judging import judge_of
from pl_prefopt.rounds.plan import CHANGING, Rounds, Stage
from pl_prefopt.rounds.stages import SUMMARY

PAGE = "report.html"
_SAMPLE_SCORE = "training.sample_score"
_CURVES = {
    "score": "Judge's score of held-out answers",
    "win_rate_first": "Win rate against the initial policy",
    "win_rate_previous": "Win rate against the previous policy",
    "words": "Words per answer",
    "kl": "KL divergence from the initial policy",
    "distinct_bigrams": "Share of different word pairs",
    "refusals": "Share of refusals",
    "position_bias.flipped": "Share of held-out comparisons whose verdict flips with the order",
    "training.position_bias.flipped": "Share of comparisons of samples whose verdict flips with the order",
    _SAMPLE_SCORE: "Training judge's score of samples",
    "training.share_without_rows": "Share of prompts without a row to train on",
}
_TEXTS, _WIDTH, _HEIGHT, _MARGIN = 5, 360, 150, 30
_STYLE = (
    "body{font-family:sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}"
    "figure{display:inline-block;margin:.5em}figcaption{font-size:.85em}"
    "td,th{border:1px solid #ccc;padding:.4em;vertical-align:top;white-space:pre-wrap}"
    "table{border-collapse:collapse;font-size:.85em}polyline{fill:none;stroke:#36c;stroke-width:2}"
)


def write_page(settings: Rounds) -> Path:
    """Write the report of all rounds that are measured, and return its path."""
    out = Path(settings.out)
    numbers = range(settings.rounds + 1)
    paths = {number: Stage(number, "measure").folder(out) / SUMMARY for number in numbers}
    found = {n: json.loads(path.read_text("utf-8")) for n, path in paths.items() if path.is_file()}
    titles = _CURVES | _curves_of_rewards(found)
    if not _judged_alike(settings, list(found)):
        del titles[_SAMPLE_SCORE]
    curves = "".join(_figure(title, _points(found, key)) for key, title in titles.items())
    body = f"<h1>Rounds in {html.escape(str(out))}</h1>{curves}{_texts(settings, list(found))}"
    with atomic_write(out / PAGE) as draft:
        draft.write_text(
            f"<!doctype html><meta charset=utf-8><title>Rounds</title><style>{_STYLE}</style>{body}",
            encoding="utf-8",
        )
    return out / PAGE


def _judged_alike(settings: Rounds, numbers: Sequence[int]) -> bool:
    """Tell whether the samples of all rounds are scored by one judge, so that a curve means something."""
    if isinstance(settings.judge, CHANGING):
        return False
    judges = [judge_of(Stage(number, "label").folder(Path(settings.out))) for number in numbers]
    return len({str(judge) for judge in judges if judge is not None}) < 2


def _curves_of_rewards(found: dict[int, Any]) -> dict[str, str]:
    """Return the curves of constrained rewards: the mean of each judge's scores, and its multiplier."""
    names = {name: one for told in found.values() for name, one in _rewards(told).items()}
    return {
        f"training.rewards.{name}.{key}": f"Judge {name}: {what}"
        for name, one in names.items()
        for key, what in (
            ("mean", f"mean score of samples, threshold {one['threshold']:.3g}"),
            ("multiplier", "multiplier"),
        )
    }


def _rewards(measured: dict[str, Any]) -> dict[str, Any]:
    return (measured.get("training") or {}).get("rewards") or {}


def _points(found: dict[int, Any], key: str) -> list[tuple[int, float]]:
    points = []
    for number, measured in found.items():
        value = measured
        for name in key.split("."):
            value = (value or {}).get(name)
        if value is not None:
            points.append((number, float(value)))
    return points


def _figure(title: str, points: Sequence[tuple[int, float]]) -> str:
    """Return a curve as SVG, with each value written at its point; nothing without points."""
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    last = max(1, max(x for x, _ in points))
    places = [
        (
            _MARGIN + x / last * (_WIDTH - 2 * _MARGIN),
            _HEIGHT - _MARGIN - (y - low) / ((high - low) or 1) * (_HEIGHT - 2 * _MARGIN),
        )
        for x, y in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        f'<text x="{x:.1f}" y="{y - 7:.1f}" font-size="11" text-anchor="middle">{value:.3g}</text>'
        f'<text x="{x:.1f}" y="{_HEIGHT - 5}" font-size="11" text-anchor="middle">{number}</text>'
        for (x, y), (number, value) in zip(places, points, strict=True)
    )
    return (
        f"<figure><figcaption>{html.escape(title)}, by round</figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}"><polyline points="{line}"/>{marks}</svg></figure>'
    )


def _texts(settings: Rounds, numbers: Sequence[int]) -> str:
    """Return a table of the first answers to the first held-out prompts after each round."""
    out = Path(settings.out)
    shown = [
        list(itertools.islice(read_shards(Stage(number, "held_out").folder(out)), _TEXTS))
        for number in numbers
    ]
    if not shown:
        return ""
    head = "".join(f"<th>round {number}</th>" for number in numbers)
    lines = [
        f"<tr><td>{html.escape(rows[0]['prompt'][-1]['content'])}</td>"
        + "".join(f"<td>{html.escape(row['responses'][0])}</td>" for row in rows)
        for rows in zip(*shown, strict=True)
    ]
    return f"<h2>Answers</h2><table><tr><th>prompt</th>{head}</tr>{''.join(lines)}</table>"

"""The page: one HTML file that needs no network and can run no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pl_prefopt.evaluations import STAGES
from pl_prefopt.report import figures, tables
from pl_prefopt.report.differences import METRICS, differences
from pl_prefopt.report.disagreements import worst_disagreements
from pl_prefopt.report.figures import Panel
from pl_prefopt.report.generations import generations
from pl_prefopt.report.header import header
from pl_prefopt.report.health import health
from pl_prefopt.report.pairs import Estimate
from pl_prefopt.report.runs import Run, common_stage
from pl_prefopt.report.subjects import Subject, judge_alike, make_subjects, same_objective
from pl_prefopt.report.token_maps import first_token_rows

_KPIS = ("accuracy", "margin", "pearson")
_KPIS_OF_ANY = ("accuracy", "ranking_accuracy", "pearson")
"""Those that compare between objectives."""
_STAGE_WORDS = {"test": "test", "val": "validation", "validate": "validation", "predict": "prediction"}


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report.

    Attributes:
        html: the page.
        panels: its figures.
    """

    html: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Card:
    """A run at a glance."""

    subject: Subject
    stage: str | None
    measured: str
    cells: Sequence[tuple[tables.Column, tables.Cell]]
    facts: Sequence[tuple[str, str]]


def build_report(runs: Sequence[Run]) -> Report:
    """Compare runs.

    Raises:
        DataError: if a file of predictions cannot be read.
    """
    stage = common_stage(runs)
    subjects = make_subjects(runs, stage)
    curves = figures.learning_curves(subjects)
    rewards = _reward_panels(subjects)
    settings = tables.all_settings(runs)
    comparable = same_objective(subjects)
    html = _template().render(
        cards=[_card(subject, comparable=comparable) for subject in subjects],
        comparable=comparable,
        subjects=subjects,
        notices=_notices(subjects, stage),
        health={subject.run.name: health(subject) for subject in subjects},
        differences=differences(subjects),
        difference_metrics=METRICS,
        difference_cell=_difference_cell,
        generations=generations(subjects),
        evaluations=tables.evaluations(runs),
        evaluated=tables.EVALUATED,
        metric_tables=tables.metric_tables(runs),
        long_tables=tables.metric_tables(runs, everything=True),
        differing=tables.differing(settings),
        settings=settings,
        curves=curves,
        rewards=rewards,
        disagreements=worst_disagreements(subjects),
        token_rows=first_token_rows(subjects),
        stage=stage,
        stage_words=_STAGE_WORDS,
        figures={panel.key: _plain(panel) for panel in [*curves, *rewards] if panel.figure is not None},
        **_assets(),
    )
    return Report(html, [*curves, *rewards])


def _reward_panels(subjects: Sequence[Subject]) -> list[Panel]:
    panels = [
        *figures.per_scale(subjects, figures.reward_by_label),
        *figures.per_scale(subjects, figures.margin_against_gap),
        *figures.per_scale(subjects, figures.reward_against_length),
        figures.calibration(subjects),
        figures.accuracy_by_gap(subjects),
        figures.accuracy_by_source(subjects),
        *figures.per_scale(subjects, figures.margin_distribution),
        figures.accuracy_by_user(subjects),
        figures.best_of_n(subjects),
    ]
    return [panel for panel in panels if panel is not None]


def _difference_cell(found: Estimate | None, metric: str) -> tuple[str, str, str]:
    """Return a difference, its interval, and ``better``, ``worse`` or nothing."""
    if found is None:
        return "–", "", ""
    share = metric != "margin"
    value, low, high = (100 * one if share else one for one in found[:3])
    unit = " points" if share else " nats"
    digits = 1 if share else 3
    text = f"{value:+.{digits}f}{unit}"
    if np.isnan(low):
        return text, "one prompt has no interval", ""
    verdict = "better" if low > 0 else "worse" if high < 0 else ""
    return text, f"{low:+.{digits}f} to {high:+.{digits}f}", verdict


def _card(subject: Subject, *, comparable: bool) -> Card:
    run, stage = subject.run, tables.best_stage(subject.run)
    kpis = _KPIS if comparable else _KPIS_OF_ANY
    names = [name for name in kpis if stage and f"{stage}/{name}" in run.metrics]
    if stage and not names:  # unpaired rows have no pairs to be right about
        of_any = ("loss", "log_ratio_0", "length_bias")[0 if comparable else 1 :]
        names = [name for name in of_any if f"{stage}/{name}" in run.metrics]
    columns = [tables.column_of(name, run.infos) for name in names]
    cells = [(column, tables.metric_cell(run, stage or "", column.name)) for column in columns]
    one = run.evaluation(stage) if stage else None
    measured = f"{one.rows_measured} · {one.weights}" if one else ""
    return Card(subject, stage, measured, cells, header(run))


def _notices(subjects: Sequence[Subject], stage: str | None) -> list[tuple[str, str]]:
    """Return what is missing or does not compare, as sentences with the command that helps."""
    notices = []
    for subject in subjects:
        run, left_out = subject.run, subject.pairs.left_out
        if stage not in run.predictions:
            what = f"no predictions of a {_STAGE_WORDS[stage]}" if stage else "no predictions"
            sentence = f"{run.name} has {what}, so the figures and cases below leave it out:"
            notices.append((sentence, run.test_command))
        elif not any(name.startswith("test/") for name in run.metrics):
            sentence = f"{run.name} has no test run, so its numbers have no intervals:"
            notices.append((sentence, run.test_command))
        if left_out:
            notices.append((f"{run.name}: {left_out:,} pairs without a finite margin are left out.", ""))
    if not judge_alike(subjects):
        sizes = ", ".join(
            f"{item.run.name} {len(item.predictions):,}" for item in subjects if item.predictions
        )
        sentence = f"The runs were measured on different prompts or responses (prompts: {sizes}), so their "
        notices.append((sentence + "numbers don't compare.", ""))
    predicted = [
        sentence
        for item in subjects
        for found in (_of_another_evaluation(item.run, stage), _of_a_part(item, stage))
        for sentence in found
    ]
    return [*notices, *_of_other_rows(subjects), *predicted]


def _of_another_evaluation(run: Run, stage: str | None) -> Iterator[tuple[str, str]]:
    """Yield a sentence where the predictions, of the last evaluation, aren't what the numbers are of."""
    main = run.evaluation("test" if stage == "test" else "val")
    last = run.predicted(stage) if stage else None
    if main is not None and last is not None and last is not main:
        yield (
            f"{run.name}: the figures and cases are of its last {_STAGE_WORDS[last.stage]} "
            f"({last.rows_measured} · {last.weights}), the numbers of another one "
            f"({main.rows_measured} · {main.weights}).",
            "",
        )


def _of_a_part(subject: Subject, stage: str | None) -> Iterator[tuple[str, str]]:
    """Yield a sentence where the predictions are of fewer prompts than the numbers."""
    last, there = subject.run.predicted(stage) if stage else None, len(subject.predictions)
    if last is not None and last.part is None and last.rows is not None and 0 < there < last.rows:
        yield (
            f"{subject.run.name}: the figures and cases are of {there:,} prompts, the numbers of all "
            f"{last.rows:,}.",
            "",
        )


def _of_other_rows(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """Return a sentence where runs were validated or tested on rows of different names or numbers."""
    notices = []
    for stage in STAGES:
        found = {item.run.name: item.run.evaluation(stage) for item in subjects}
        rows = {name: one.rows_measured for name, one in found.items() if one is not None and one.data}
        prints = {one.fingerprint for one in found.values() if one is not None and one.data}
        # The fingerprint changes with the tokeniser too, the name with the working folder.
        if len(set(rows.values())) > 1 and len(prints) > 1:
            each = "; ".join(f"{name}: {what}" for name, what in rows.items())
            sentence = f"The {_STAGE_WORDS[stage]} numbers are of different rows and don't compare ({each})."
            notices.append((sentence, ""))
    return notices


def _plain(panel: Panel) -> Any:
    """Return a figure as plain JSON values; NaN is null."""
    return json.loads(panel.figure.to_json()) if panel.figure is not None else None


def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = StrictUndefined
    return environment.from_string(_read("page.html.jinja"))


@cache
def _assets() -> dict[str, Any]:
    """Return our style and scripts, and the hashes by which the page's security policy knows the scripts.

    Nothing else may run: what a response says is text, and were it ever taken for a script, the browser would
    refuse it.
    """
    scripts = [get_plotlyjs(), _read("page.js")]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return {
        "style": Markup(_read("page.css")),
        "scripts": [Markup(script) for script in scripts],
        "policy": policy,
    }


def _read(name: str) -> str:
    return (files("pl_prefopt.report") / "assets" / name).read_text(encoding="utf-8")

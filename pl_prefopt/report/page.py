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

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pl_prefopt.evaluations import STAGES
from pl_prefopt.report import figures, tables
from pl_prefopt.report.disagreements import worst_disagreements
from pl_prefopt.report.figures import Panel
from pl_prefopt.report.health import health
from pl_prefopt.report.runs import Run, common_stage
from pl_prefopt.report.subjects import Subject, judge_alike, make_subjects
from pl_prefopt.report.token_maps import first_token_rows

_KPIS = ("accuracy", "margin", "pearson")
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
    html = _template().render(
        cards=[_card(subject) for subject in subjects],
        subjects=subjects,
        notices=_notices(subjects, stage),
        health={subject.run.name: health(subject) for subject in subjects},
        evaluations=tables.evaluations(runs),
        evaluated=tables.EVALUATED,
        metric_tables=tables.metric_tables(runs),
        long_tables=tables.metric_tables(runs, everything=True),
        differences=tables.differing(settings),
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
        figures.margin_against_gap(subjects),
        figures.reward_against_length(subjects),
        figures.calibration(subjects),
        figures.accuracy_by_gap(subjects),
        figures.accuracy_by_source(subjects),
        figures.margin_distribution(subjects),
    ]
    by_label = figures.reward_by_label(subjects)
    further = [by_label, *panels, figures.accuracy_by_user(subjects), figures.best_of_n(subjects)]
    return [panel for panel in further if panel is not None]


def _card(subject: Subject) -> Card:
    run, stage = subject.run, tables.best_stage(subject.run)
    names = [name for name in _KPIS if stage and f"{stage}/{name}" in run.metrics]
    if stage and not names:  # unpaired rows have no pairs to be right about
        names = [name for name in ("loss", "log_ratio_0", "length_bias") if f"{stage}/{name}" in run.metrics]
    columns = [tables.column_of(name, run.infos) for name in names]
    cells = [(column, tables.metric_cell(run, stage or "", column.name)) for column in columns]
    one = run.evaluation(stage) if stage else None
    return Card(subject, stage, f"{one.rows_measured} · {one.weights}" if one else "", cells)


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
    predicted = [sentence for item in subjects for sentence in _of_another_evaluation(item.run, stage)]
    return [*notices, *_of_other_rows(subjects), *predicted]


def _of_another_evaluation(run: Run, stage: str | None) -> Iterator[tuple[str, str]]:
    """Yield a sentence where the predictions, of the last evaluation, aren't what the numbers are of."""
    main = run.evaluation("test" if stage == "test" else "val")
    last = next((one for one in reversed(run.evaluations) if one.command == stage), None)
    if stage in run.predictions and main is not None and last is not None and last is not main:
        yield (
            f"{run.name}: the figures and cases are of its last {_STAGE_WORDS[last.stage]} "
            f"({last.rows_measured} · {last.weights}), the numbers of another one "
            f"({main.rows_measured} · {main.weights}).",
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

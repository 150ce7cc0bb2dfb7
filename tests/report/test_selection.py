"""Margins, users and best-of-n in reports, against counting and all choices of n responses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pl_prefopt.metrics.lists import best_of_n_scores
from pl_prefopt.report import figures
from pl_prefopt.report.figures.selection import score_curves
from pl_prefopt.report.runs import read_runs
from pl_prefopt.report.subjects import make_subjects
from tests.report.folders import pair_rows, ranked_rows, write_run


def subjects_of(tmp_path, rows):
    folder = write_run(tmp_path / "run", rows)
    return make_subjects(read_runs([folder]), "test")


def test_the_best_of_n_is_the_mean_over_all_choices():
    rewards, scores = [0.5, 2.0, -1.0, 2.0, 1.0], [3.0, 1.0, 4.0, 6.0, 2.0]
    found = best_of_n_scores(rewards, scores)
    for n in range(1, 6):
        best = []
        for chosen in itertools.combinations(range(5), n):
            highest = max(rewards[place] for place in chosen)
            best.append(np.mean([scores[place] for place in chosen if rewards[place] == highest]))
        assert found[n - 1] == pytest.approx(np.mean(best))


def test_the_page_has_margins_users_and_the_best_of_n(tmp_path):
    rows = ranked_rows()
    for number, row in enumerate(rows):
        row["columns"] = {"annotator": number % 2}
    subjects = subjects_of(tmp_path, rows)
    (subject,) = subjects
    (trace,) = figures.accuracy_by_user(subjects).figure.data
    pairs = subject.pairs
    for user, value in zip(trace.y, trace.x, strict=True):
        assert value == pytest.approx(pairs.right[pairs.prompt % 2 == int(user)].mean())
    (bars,) = figures.margin_distribution(subjects).figure.data
    assert sum(bars.y) == pytest.approx(1)
    below = sum(y for x, y, w in zip(bars.x, bars.y, bars.width, strict=True) if x + w / 2 <= 0)
    assert below <= (pairs.margin <= 0).mean()
    curves = score_curves(subject.predictions)
    (line,) = figures.best_of_n(subjects).figure.data
    assert list(line.y) == pytest.approx(list(curves.mean(axis=0)))
    lists = [row["responses"] for row in rows if len(row["responses"]) >= curves.shape[1]]
    assert line.y[0] == pytest.approx(np.mean([np.mean([one["score"] for one in row]) for row in lists]))
    alone = figures.best_of_n(subjects_of(tmp_path / "alone", rows[1:2])).figure.data[0]
    assert alone.error_y.array is None
    one_each = [{**row, "columns": {"user": str(number)}} for number, row in enumerate(rows)]
    (trace,) = figures.accuracy_by_user(subjects_of(tmp_path / "each", one_each)).figure.data
    assert all(text.startswith("one prompt has no interval, ") for text in trace.customdata)
    pairs_alone = subjects_of(tmp_path / "pairs", pair_rows())
    assert figures.accuracy_by_user(pairs_alone) is None
    assert figures.best_of_n(pairs_alone) is None

"""An objective in the working directory reads a column of the rows, from a file with names of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.docs.pages import reads_a_column
from tests.runs import NO_TEXTS, metrics_of, rated_rows, write_rows

AXES = [part for name in ("base", "hardware/cpu", "trusted.yaml") for part in ("-c", name)]


@pytest.fixture
def fit(prefopt, tmp_path, tiny_model):
    """The class and the YAML that the page on new methods shows."""
    (tmp_path / "annotators.py").write_text(reads_a_column("python"))
    (tmp_path / "trusted.yaml").write_text(reads_a_column("yaml"))
    write_rows(tmp_path / "theirs.jsonl", rated_rows(8))
    quick = ["--data.held_out", 2, "--model.init_args.policy.name", tiny_model, "--run_dir", "run"]
    return lambda *more: ("fit", *AXES, *quick, *NO_TEXTS, *more)


def test_a_class_in_the_working_directory_reads_a_column(prefopt, fit, tmp_path):
    printed = prefopt(*fit())
    assert printed.count("\n  columns not used: note\n") == 1
    prefopt("test", "-c", "run/config.yaml", "--data.test", "theirs.jsonl", "--run_dir", "untrained")
    # An untrained pair costs ln 2; those of one of the two annotators count half.
    assert metrics_of(tmp_path / "untrained", "test")["test/loss"] == pytest.approx(0.75 * math.log(2))
    lines = Path("untrained/test/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [{"annotator": f"r{number % 2}", "note": "n"} for number in range(8)]
    assert [json.loads(line)["columns"] for line in lines] == expected


def test_names_that_do_not_fit_are_told_before_a_model_loads(prefopt, fit):
    said = prefopt.fails(*fit("--data.columns.annotator", "ratr"))
    assert (
        "data.columns maps 'annotator' to 'ratr', but theirs.jsonl has no such column; its columns are"
        in said
    )
    said = prefopt.fails(*fit("--data.columns", "{prompt: question, chosen: good, rejected: bad}"))
    assert (
        "TrustedDPO needs the column 'annotator', but train (theirs.jsonl) has no such column; its columns "
        "are prompt, chosen, rejected, rater, note: add it, or map another column to it with data.columns."
        in said
    )

"""The sample answers of a run that was resumed or cut."""

from __future__ import annotations

import csv

import pytest
from lightning.pytorch.loggers import CSVLogger

from pl_prefopt.callbacks.publishing import TextTable, publish_table
from pl_prefopt.report import read_runs
from pl_prefopt.report.generations import generations
from pl_prefopt.report.subjects import make_subjects
from tests.report.folders import write_run

HEADING = "step,prompt,before,now\r\n"


def answers(folder):
    """The answers by prompt, with the step of each; without those before training."""
    found = generations(make_subjects(read_runs([folder]), None))
    return {one.prompt: [(each.when, each.text) for each in one.answers[1:]] for one in found}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("100,A,b,OLD\n100,B,b,OLD\n60,A,b,NEW\n", {"A": [("step 60", "NEW")]}),
        ("50,A,b,first\n100,A,b,OLD\n60,A,b,NEW\n60,B,b,NEW\n", {x: [("step 60", "NEW")] for x in "AB"}),
        ('10,A,b,whole\n20,A,b,"cut in\n', {"A": [("step 10", "whole")]}),
        ("10,A,b,whole\n20,A,b,merg30,A,b,ed\n", {"A": [("step 10", "whole")]}),
    ],
)
def test_the_answers_are_those_of_the_last_whole_validation(tmp_path, rows, expected):
    folder = write_run(tmp_path / "run")
    (folder / "generations.csv").write_text(HEADING + rows)
    assert answers(folder) == expected


@pytest.mark.parametrize("cut", [b"11,A,b,el", b'11,A,b,"two\n', "11,A,b,\u00e4".encode()[:-1]])
def test_a_row_that_was_cut_does_not_swallow_the_next_ones(tmp_path, cut):
    folder = write_run(tmp_path / "run")
    path = folder / "generations.csv"
    path.write_bytes(f"{HEADING}10,A,b,ten\r\n".encode() + cut)
    assert answers(folder) == {"A": [("step 10", "ten")]}
    table = TextTable(("prompt", "before", "now"), [("A", "b", "twelve"), ("B", "b", "twelve")])
    publish_table(CSVLogger(folder, name="", version=""), "generations", table, 12)
    assert answers(folder) == {x: [("step 12", "twelve")] for x in "AB"}
    with path.open(encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["step", "10", "12", "12"]

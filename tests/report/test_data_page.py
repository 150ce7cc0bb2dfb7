"""The pages on preference data and on benchmarks."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from pl_prefopt.data.formats import to_row
from pl_prefopt.data.transforms import Change
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.report import bench_tables, data_tables, plain_page
from tests.runs import write_rows


def ranked(prompt, responses, scores, **columns):
    return {"prompt": prompt, "responses": responses, "scores": scores, **columns}


ROWS = [
    ranked(
        "A?", ["aaaa", "bb", "cc"], [3, 2, 2], source="x", other=[2.0, 1.0, 0.0]
    ),  # 2 pairs, longer better
    ranked("B?", ["a", "bbb"], [2, 1], source="x", other=[1.0, 2.0]),  # shorter better
    ranked("a? ", ["AAAA", "bb", "CC"], [3, 2, 2], source="y", other=[2.0, 1.0, 0.0]),  # the first again
    {"prompt": "C?", "chosen": "no", "rejected": "ja", "other": [0.0, 0.0]},  # as long
]


def cells(tables, title):
    (table,) = [one for one in tables if one.title == title]
    return {row[0]: row[1:] for row in table.rows}


def test_the_numbers_of_the_data():
    rows = [to_row(row) for row in ROWS]
    held_out = [to_row(ranked("b?", ["x", "y"], [1, 0]))]
    tables = data_tables(rows, held_out=held_out)
    size = cells(tables, "size")
    for name, number in {
        "rows": 4,
        "responses": 10,
        "pairs": 6,
        "graded rows": 3,
        "rows with tied scores": 2,
        "different prompts": 3,
        "rows that repeat an earlier one": 1,
        "rows whose prompt is held out": 1,
        "rows that are held out": 0,
    }.items():
        assert size[name] == (str(number),), name
    assert cells(tables, "sources") == {"x": ("2",), "y": ("1",), "none": ("1",)}
    assert cells(tables, "scores")["gap of graded pairs"][:5] == ("1",) * 5
    assert cells(tables, "lengths in characters")["better"][4] == "4"
    rule = cells(tables, "length alone")
    assert rule["accuracy of taking the longer response"][0].startswith("75.0 % [")  # (4 + 0 + 0.5) / 6


def test_two_columns_of_scores_are_compared():
    rows = [to_row(row) for row in ROWS[:3]]
    agreement = cells(data_tables(rows, compare=["scores", "other"]), "agreement of scores and other")
    # Verdicts of scores: 2 + 1 + 2 pairs and 2 ties; of other, the ties are decided and one pair is reversed.
    assert agreement["pairs"] == ("7",)
    assert agreement["pairs with the same verdict (a tie is one)"] == (f"{100 * 4 / 7:.1f} %",)
    chance = (5 * 7 + 5 * 7) / 14**2  # each pair in both orders: 5 wins, 5 losses, 4 ties against 7 and 7
    assert agreement["Cohen's κ of the verdicts"] == (f"{(4 / 7 - chance) / (1 - chance):.3f}",)
    with pytest.raises(DataError, match="expected one number per response in the column 'mine'"):
        data_tables(rows, compare=["scores", "mine"])
    unknown = dataclasses.replace(rows[0], columns={"other": (math.nan,) * len(rows[0].responses)})
    with pytest.raises(DataError, match="expected one number per response in the column 'other'"):
        data_tables([unknown], compare=["scores", "other"])
    with pytest.raises(ConfigError, match="expected two columns to compare, got scores"):
        data_tables(rows, compare=["scores"])


def test_what_transforms_changed_is_shown():
    rows = [to_row(row) for row in ROWS]
    tables = data_tables(rows, changes=[Change("Mine()", 4, 2, 2, 0)], transformed=rows[:2])
    assert cells(tables, "what the transforms did") == {"Mine()": ("4", "2", "2", "0")}
    after = cells(tables, "before and after")
    assert after["pairs"] == ("6", "3")
    assert after["accuracy of taking the longer response"][1].startswith("66.7 %")


def test_texts_are_shown_letter_by_letter():
    tables = data_tables([to_row({**ROWS[0], "source": "<script>alert(1)</script>"})])
    page = plain_page("<b>", tables)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def number(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "count": 3}


def result(value, **more):
    return {
        "benchmark": "RewardBench",
        "overall": number(value, 0.4, 0.9),
        "tables": {"sections": {"Chat": number(value)}},
        "counts": {"tasks": 3},
        "notes": [],
        "judge": "Mine",
        **more,
    }


def test_results_of_one_benchmark_share_its_tables():
    found = {"a": result(0.5), "b": result(None, overall=None, notes=["no sections"], partial=True)}
    tables, notes = bench_tables(found)
    assert tables[0].rows == [
        ("RewardBench", "Mine", "a", "50.00 % [40.0, 90.0]", "tasks 3", "all"),
        ("RewardBench", "Mine", "b", "–", "tasks 3", "partial"),
    ]
    assert (tables[1].head, tables[1].rows) == (("", "a", "b"), [("Chat", "50.00 %", "–")])
    assert notes == ["b: no sections"]
    assert math.isfinite(len(plain_page("Benchmarks", tables, notes)))


def test_pages_are_written_from_the_command_line(prefopt, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "D?"}])
    write_rows(tmp_path / "test.jsonl", ROWS[:1])
    (tmp_path / "t.yaml").write_text(
        "transforms:\n- class_path: pl_prefopt.data.transforms.RemoveDuplicates\n"
    )
    given = (
        "--data",
        tmp_path / "rows.jsonl",
        "--held_out",
        tmp_path / "test.jsonl",
        "-c",
        tmp_path / "t.yaml",
    )
    printed = prefopt("report", *given, "--out", tmp_path / "data.html")
    assert "rows whose prompt is held out    2" in printed
    assert "RemoveDuplicates(by='row')  4            3           1        0" in printed
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert "Data: rows.jsonl" in page
    assert "1 bad rows are left out." in page
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/result.json").write_text(json.dumps(result(0.5)))
    prefopt("report", tmp_path / "bench", "--out", tmp_path / "bench.html")
    assert "RewardBench: sections" in (tmp_path / "bench.html").read_text(encoding="utf-8")
    (tmp_path / "bench/result.json").write_text("{}")
    assert "expected the result of `prefopt bench`" in prefopt.fails("report", tmp_path / "bench")
    assert "needs the folders of runs, or --data FILE" in prefopt.fails("report")

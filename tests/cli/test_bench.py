"""`prefopt bench`: a benchmark from a file to the numbers on disk."""

from __future__ import annotations

import json

ROW = {"prompt": "Name a gas.", "chosen": "Neon is a gas.", "rejected": "Iron.", "subset": "math-prm"}
JUDGE = """
from pl_prefopt.judges import Judge, Verdict


class Longest(Judge):
    '''Scores by length.'''

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def fingerprint(self):
        return f"longest {self.factor}"

    def judge(self, batch):
        return [Verdict(scores=tuple(map(self.score, row.responses))) for row in batch]

    def score(self, response):
        return self.factor * len(response[-1].content)
"""


def test_a_judge_is_named_and_its_numbers_are_written(prefopt, tmp_path, monkeypatch):
    (tmp_path / "longest.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{**ROW, "id": number} for number in range(3)]
    rows[2] |= {"chosen": ROW["rejected"], "rejected": ROW["chosen"]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.yaml").write_text("class_path: longest.Longest\ninit_args: {factor: 2}\n")
    given = ("bench", "rewardbench", "--judge", tmp_path / "judge.yaml", "--data", tmp_path / "rows.jsonl")
    assert "type --partial to score what is there" in prefopt.fails(*given, "--out", tmp_path / "out")
    printed = prefopt(*given, "--out", tmp_path / "out", "--partial")
    assert "Longest: 3 questions, 0 of them answered before" in printed
    assert "not to be compared with published numbers: 0 of 100 tasks of 'alpacaeval-easy'" in printed
    assert "math-prm   66.67 [0.00, 100.00]  (3)" in printed
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["overall"] is None  # it needs all four sections
    assert written["tables"]["sections"]["Reasoning"]["value"] == 2 / 3
    assert (written["judge"], written["judge_fingerprint"]) == ("Longest", "longest 2.0")
    assert len(written["missing"]) == 23
    assert "3 questions" not in prefopt(*given, "--out", tmp_path / "out", "--partial")
    said = prefopt.fails("bench", "reward_bench", "--data", "rows.jsonl")
    assert "did you mean 'rewardbench'" in said
    assert "needs a judge: type --judge CLASS" in prefopt.fails("bench", "rm_bench", "--data", "rows.jsonl")


def test_stored_annotations_need_no_judge(prefopt, tmp_path):
    rows = [{"output_1": "a", "output_2": "b", "preference": value} for value in (2, 2, 1, 1.5)]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    given = ("bench", "alpaca_eval", "--data", tmp_path / "annotations.json", "--out", tmp_path / "out")
    assert "win rate            62.50" in prefopt(*given, "--partial")

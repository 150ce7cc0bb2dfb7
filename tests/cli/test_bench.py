"""`prefopt bench`: a benchmark from a file to the numbers on disk."""

from __future__ import annotations

import json

import pytest

from pl_prefopt.judges import ImplicitReward, JudgedRow
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Message
from tests.support import CHATML, save_tiny_model

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


def test_arguments_of_the_chat_template_reach_the_judge_of_label_and_bench(prefopt, tmp_path):
    asked = save_tiny_model(tmp_path / "asked", chat_template="{% if brief %}Be brief.\n{% endif %}" + CHATML)
    always = save_tiny_model(tmp_path / "always", chat_template="Be brief.\n" + CHATML)
    texts = (ROW["chosen"], ROW["rejected"])
    row = JudgedRow(
        prompt=(Message("user", ROW["prompt"]),),
        responses=tuple((Message("assistant", text),) for text in texts),
    )
    (expected,) = ImplicitReward(PolicySpec(name=str(always)), None).judge([row])
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, "id": 1}) + "\n")
    judge = ("--judge", "ImplicitReward", "--judge.policy.name", asked, "--judge.reference", "null")
    told = (*judge, "--judge.template_arguments", "{brief: true}")
    prefopt("label", tmp_path / "rows.jsonl", *told, "--out", tmp_path / "told.jsonl")
    prefopt("label", tmp_path / "rows.jsonl", *judge, "--out", tmp_path / "plain.jsonl")
    scores, without = (
        json.loads((tmp_path / f"{name}.jsonl").read_text())["scores"] for name in ("told", "plain")
    )
    assert scores == pytest.approx(expected.scores, abs=1e-5)
    assert abs(without[0] - scores[0]) > 1e-3
    given = ("--data", tmp_path / "rows.jsonl", "--partial", "--out", tmp_path / "bench")
    prefopt("bench", "rewardbench", *told, *given)
    verdict = json.loads((tmp_path / "bench/verdicts.jsonl").read_text().splitlines()[1])
    assert verdict["scores"] == pytest.approx(scores, abs=1e-5)
    # A dotted argument is the same.
    dotted = (*judge, "--judge.template_arguments.brief", "true")
    prefopt("bench", "rewardbench", *dotted, *given)  # the same judge, so its verdicts are there already

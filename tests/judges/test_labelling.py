"""Labelling files: what is written, what loads again, and what a kill costs."""

import json
import os
import signal
import threading
import warnings
from datetime import date, timedelta
from decimal import Decimal
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pl_prefopt.data import Source
from pl_prefopt.data.formats import convert, relabelled, to_row
from pl_prefopt.errors import ConfigError, DataError, RunError
from pl_prefopt.judges import Judge, Patience, Rule, ServerScores, Verdict
from pl_prefopt.judges.answer_cache import AnswerCache
from pl_prefopt.judges.labelling import Labelling
from pl_prefopt.servers import Reply
from tests.fake_server import FakeServer, Say
from tests.kills import killed_until_done
from tests.runs import pair_rows, write_rows

BREVITY = Rule("pl_prefopt.judges.rules.brevity")


class Likes(Judge):
    """Prefers the first response, and says nothing about odd rows."""

    gives: ClassVar = "probabilities"

    def fingerprint(self):
        return "likes"

    def judge(self, batch):
        return [self._verdict(row) for row in batch]

    def _verdict(self, row):
        if row.columns.get("number", 0) % 2:
            return Verdict.of_probabilities([[0.5, None], [None, 0.5]], problems=["no verdict"])
        return Verdict.of_probabilities([[0.5, 0.8], [0.2, 0.5]], rationales=[f"as {row.context}"])


def labelled(tmp_path, rows, judge=BREVITY, **settings):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = Labelling(source=Source(path=path), judge=judge, **settings).run(tmp_path / "out.jsonl")
    return found, read(tmp_path / "out.jsonl")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


LAYOUTS = {
    "pairs": {
        "prompt": "Hi",
        "chosen": "Hello.",
        "rejected": "What?",
        "score_chosen": 4,
        "score_rejected": 3,
    },
    "ranked": {
        "prompt": "Hi",
        "responses": ["Hello.", "What?", "Hm"],
        "ranks": [1, 3, 2],
        "system": "Be kind.",
    },
    "UltraFeedback": {
        "instruction": "Hi",
        "completions": [{"response": "Hello.", "overall_score": 5, "critique": "ok"}, {"response": "What?"}],
    },
    "unpaired": {"prompt": "Hi", "completion": "Hello.", "label": True, "thinking": "a greeting"},
    "HH": {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    "JudgeBench": {
        "question": "Hi",
        "response_A": "Hello.",
        "response_B": "What?",
        "label": "A>B",
        "id": [1, [2]],
    },
    "criteria": {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?", "context": "Judge brevity."},
    "labelled before": {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2], "judge": "x", "weight": 2},
    "tools": {"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "tools": [{"name": "f"}], "source": "s"},
    "two prompts": {"prompt_chosen": "Hi", "prompt_rejected": "Ho", "completion": "Hello.", "source": 3},
    "another prompt": {
        "prompt": "Hi",
        "chosen": "Yes.",
        "rejected": "No.",
        "prompt_rejected": [{"role": "user", "content": "Ho"}],
        "context": "Judge brevity.",
    },
    "an unread prompt": {
        "context": [{"role": "user", "content": "Hi"}],
        "response1": "Yes.",
        "response2": "No.",
        "overall_preference": -2,
        "prompt": [1, 2],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_every_layout_keep_their_columns_and_load_again(tmp_path, layout):
    if layout == "UltraFeedback":
        LAYOUTS[layout]["completions"][1]["overall_score"] = 2
    fields = LAYOUTS[layout]
    before = convert(fields)
    _, (new,) = labelled(tmp_path, [fields])
    after = convert(new)
    assert (after.row.prompt, after.row.responses) == (before.row.prompt, before.row.responses)
    assert (after.row.template_args, after.row.source) == (before.row.template_args, before.row.source)
    assert after.row.graded
    assert list(after.row.scores) == [-len(turns[-1].content) for turns in before.row.responses]
    assert new["original_scores"] == list(before.row.scores)
    assert new["judge"].startswith("Rule(pl_prefopt.judges.rules.brevity) ")
    for name in ("context", "source", "prompt_rejected", "weight"):
        assert after.row.columns.get(name) == before.row.columns.get(name), name
    assert "original_source" not in new
    for name, value in fields.items():
        same = {"prompt", "responses", "scores", "tools", "context", "prompt_rejected"} & {name}
        assert same or value in (new.get(name), new.get(f"original_{name}")), name


def test_invalid_answers_are_counted_and_never_guessed(tmp_path):
    rows = [{**row, "number": number, "aim": "told"} for number, row in enumerate(pair_rows(4))]
    found, written = labelled(tmp_path, rows, Likes(), context="all", context_column="aim")
    assert (found.rows, found.incomplete, found.invalid, found.problems) == (4, 2, 2, ["no verdict"] * 2)
    assert [row.get("scores") for row in written] == [[0.8, 0.2], None] * 2
    assert written[0]["preference"] == 0.8
    assert written[0]["rationales"] == ["as all\n\ntold"]
    assert written[1]["pair_probabilities"] == [[0.5, None], [None, 0.5]]
    assert [to_row(row).scores for row in written] == [(0.8, 0.2), None] * 2
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(ConfigError, match="'context' is a part of the prompt"):
        labelled(tmp_path, rows, Likes(), context_column="context")
    found, written = labelled(tmp_path, rows, Likes(), drop_invalid=True)
    assert (found.dropped, [row["number"] for row in written]) == (2, [0, 2])


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": "a", "rejected": "b", "votes": [1, 5]},
        {"chosen": "a", "rejected": "b", "votes": [-1, 5]},
        {"responses": ["a", "b"], "votes": [1, 5]},
        {"responses": ["a", "b"], "votes": "[1, 5]"},
    ],
)
def test_without_a_verdict_votes_are_no_labels(tmp_path, fields):
    rows = [{"prompt": "Hi", **fields, "number": number} for number in range(2)]
    _, written = labelled(tmp_path, rows, Likes())
    assert [to_row(row).scores for row in written] == [(0.8, 0.2), None]
    assert (written[0]["votes"], written[1]["original_votes"]) == (fields["votes"], fields["votes"])


def test_annotators_scores_stay_lists_and_an_earlier_verdict_is_not_taken_for_the_new_one(tmp_path):
    earlier = {"judge": "x", "preference": 0.9, "rationales": ["why"], "strength": 2.0, "judge_scores": None}
    row = {"prompt": "Hi", "responses": ["a", "bb"], "scores": [[1, 2], [0]], "rater": 3}
    pair = {"prompt": "Hi", "chosen": "bb", "rejected": "a", **earlier}
    _, (new, other) = labelled(tmp_path, [row, pair])
    assert (new["scores"], new["original_scores"], new["rater"]) == ([-1.0, -2.0], [[1, 2], [0]], 3)
    assert to_row(new).columns["original_scores"] == ("[1, 2]", "[0]")
    again = to_row({"prompt": new["prompt"], "responses": ["a", "bb"], "scores": new["original_scores"]})
    assert (again.scores, again.columns) == (
        to_row(row).scores,
        {"strength": (1.5, 0), "strength_std": (0.5, 0)},
    )
    kept = {name: value for name, value in earlier.items() if value is not None}
    assert {name: other[f"original_{name}"] for name in kept} == kept
    assert {name for name in other if not name.startswith("original_")} == {
        *("prompt", "responses", "scores", "judge")
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"responses": ["a", "c"]}, "would load again with another 'responses'"),
        ({"weight": 2}, "would load again with another 'weight'"),
        ({"answers": "x"}, r"would not load again \(its columns could be"),
    ],
)
def test_rows_that_would_not_load_again_are_bad_rows_before_anything_is_judged(
    tmp_path, monkeypatch, change, problem
):
    def changed(fields, *others):
        return relabelled(fields, *others) | (change if fields["prompt"] == "Odd" else {})

    monkeypatch.setattr("pl_prefopt.judges.labelling.relabelled", changed)
    rows = [*pair_rows(2), {"prompt": "Odd", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match=rf"row 3: with a verdict it {problem}"):
        labelled(tmp_path, rows, judge=Rule(lambda row: pytest.fail("was judged")))
    found, written = labelled(tmp_path, rows, on_bad_row="skip")
    assert (found.rows, found.skipped, len(written)) == (2, 1, 2)


def test_columns_that_json_cannot_hold_are_left_out_and_named_once(tmp_path, prefopt):
    table = {
        "prompt": ["Hi"] * 3,
        "chosen": ["a"] * 3,
        "rejected": ["bb"] * 3,
        "hash": [None, b"x", b"y"],
        "took": [timedelta(seconds=1)] * 3,
        "meta": [{"hash": b"x"}] * 3,
        "weight": [Decimal("0.5")] * 3,
        "day": [date(2026, 1, 2)] * 3,
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    brief = ("--judge", "Rule", "--judge.function", "pl_prefopt.judges.rules.brevity")
    said = prefopt("label", tmp_path / "rows.parquet", *brief, "--out", tmp_path / "out.jsonl")
    assert said.count("can't be kept") == 1
    assert (
        "columns that can't be kept: took (a value of type timedelta in rows.parquet, row 1); "
        "meta (a value of type bytes in rows.parquet, row 1); "
        "hash (a value of type bytes in rows.parquet, row 2)"
    ) in said
    written = read(tmp_path / "out.jsonl")
    assert [row["day"] for row in written] == ["2026-01-02"] * 3
    assert not any({"took", "meta"} & row.keys() or row.get("hash") for row in written)
    assert all(to_row(row).columns["weight"] == 0.5 for row in written)
    assert all(to_row(row).scores == (-1, -2) for row in written)


def test_a_killed_labelling_pays_for_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_prefopt.judges.labelling.ROWS_PER_PART", 4)
    rows = [{"prompt": f"case {number}.", "chosen": "Yes.", "rejected": "No."} for number in range(10)]
    path, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    reached = threading.Event()

    def answer(body, _):
        asked = body["messages"][-1]["content"]
        if "case 6." in asked and "Yes." in asked and not reached.is_set():
            reached.set()
            return Say(fault="hang")
        return Say("[[3]]" if "Yes." in asked else "[[2]]")

    def run():
        patience = Patience(timeout=60.0)
        server_judge = ServerScores(
            server.url, "m", cache_dir=str(tmp_path), concurrency=1, patience=patience
        )
        return Labelling(source=Source(path=path), judge=server_judge).run(out)

    server = FakeServer(answer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the server's thread starts after the fork
        child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(1)
    with server:
        assert reached.wait(60)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not out.exists()
        paid = sum(server.answered.values())
        assert paid == 12
        found = run()
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == 20
    # The first part is complete; of the second, two rows were paid for before.
    assert (found.rows, found.cost.requests, found.cost.cached) == (10, 8 + 8, 4)
    assert [row["prompt"][0]["content"] for row in read(out)] == [row["prompt"] for row in rows]
    assert all(row["scores"] == [3.0, 2.0] for row in read(out))
    assert not list(tmp_path.glob(".*parts*"))


def test_killed_at_random_points_a_labelling_pays_for_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_prefopt.judges.labelling.ROWS_PER_PART", 3)
    rows = [{"prompt": f"case {number}.", "chosen": "Yes.", "rejected": "No."} for number in range(7)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    how = os.O_CREAT | os.O_APPEND | os.O_WRONLY
    files = {name: os.open(tmp_path / name, how) for name in ("paid", "kept")}
    points = [lambda: None]

    def post(_, path, body, needs):
        asked = body["messages"][-1]["content"]
        points[0]()
        os.write(files["paid"], b"x")
        points[0]()
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        message = {"content": f"[[{3 if 'Yes.' in asked else 2}]]"}
        return Reply({"choices": [{"message": message}], "usage": usage}, 0, 0.0)

    def put(cache, key, answer):
        stored(cache, key, answer)
        os.write(files["kept"], b"x")
        points[0]()

    stored = AnswerCache.put
    monkeypatch.setattr("pl_prefopt.servers.JsonServer.post", post)
    monkeypatch.setattr(AnswerCache, "put", put)

    def run(point, name="out"):
        points[0] = point
        patience = Patience(timeout=60.0)
        cache = str(tmp_path / f"cache of {name}")
        judge = ServerScores("http://127.0.0.1:1/v1", "m", cache_dir=cache, concurrency=1, patience=patience)
        return Labelling(source=Source(path=path), judge=judge).run(tmp_path / f"{name}.jsonl")

    kills = killed_until_done(run, seed=0, most_points=24)
    assert kills > 2
    paid, kept = ((tmp_path / name).stat().st_size for name in ("paid", "kept"))
    # Each answer is kept once; only those that were under way are paid for again.
    assert kept == 14 <= paid <= 14 + kills
    run(points[0], "whole")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    for file in files.values():
        os.close(file)


def test_parts_of_another_labelling_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_prefopt.judges.labelling.ROWS_PER_PART", 2)

    def fail(row):
        if row.prompt[0].content.startswith("Where"):
            raise KeyError("no such place")
        return [1.0, 0.0]

    with pytest.raises(RunError, match=r"fail\) failed at rows.jsonl, row 3 \(KeyError"):
        labelled(tmp_path, pair_rows(4), Rule(fail))
    with pytest.raises(ConfigError, match=r"holds parts of .*out\.jsonl by another judge"):
        labelled(tmp_path, pair_rows(4))
    with pytest.raises(ConfigError, match=r"holds parts of .*out\.jsonl by another judge"):
        labelled(tmp_path, pair_rows(5), Rule(fail))


def test_what_cannot_be_labelled_is_told_before_anything_is_judged(tmp_path):
    rows = [*pair_rows(2), {"prompt": "Hi", "chosen": "Yes."}]
    with pytest.raises(DataError, match=r"row 3: .*`--on_bad_row skip`"):
        labelled(tmp_path, rows, judge=Rule(lambda row: pytest.fail("was judged")))
    found, written = labelled(tmp_path, rows, on_bad_row="skip")
    assert (found.skipped, len(written)) == (1, 2)
    with pytest.raises(ConfigError, match="exists already"):
        labelled(tmp_path, rows)
    with pytest.raises(ConfigError, match=r"ending in \.jsonl"):
        Labelling(source=Source(path="rows.jsonl"), judge=BREVITY).run(tmp_path / "out.csv")


def test_the_command_labels_and_its_rows_train(tmp_path, prefopt):
    rated = [{"prompt": "Hi", "response": text, "helpfulness": 1} for text in ("No", "Yes!")]
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "rater": "r"} for row in (*pair_rows(4), *rated)])
    out = tmp_path / "graded.jsonl"
    said = prefopt(
        "label", path, "--judge", "Rule", "--judge.function", "pl_prefopt.judges.rules.brevity", "--out", out
    )
    assert f"Wrote {out}: 5 rows" in said
    assert "rows.jsonl: 2 rows of HelpSteer2 ratings became 1 list" in said
    assert all(to_row(row).graded and "r" in to_row(row).columns["rater"] for row in read(out))
    assert "did you mean 'Rule'" in prefopt.fails("label", path, "--judge", "Rul", "--out", out)
    missing = prefopt.fails("label", path, "--judge", "mine.yaml", "--out", out)
    assert "there is no file mine.yaml" in missing
    assert "ImplicitReward" in prefopt("list", "judges")

"""Generative judges over a server: verdicts, faults, costs, and nothing paid for twice."""

import dataclasses
import math

import pytest

from pl_prefopt.data import Source
from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.judges import JudgedRow, JudgeTemplate, Patience, Prices, ServerPairs, ServerScores
from pl_prefopt.judges.labelling import Labelling
from pl_prefopt.rows import Message
from tests.fake_server import FakeServer, Say
from tests.runs import pair_rows, write_rows

QUICK = Patience(timeout=5.0, backoff=0.001, longest_wait=1.0)


def row(*responses, prompt="What is a fox?", context=""):
    return JudgedRow(
        prompt=(Message("user", prompt),),
        responses=tuple((Message("assistant", text),) for text in responses),
        context=context,
    )


def asked(body):
    return body["messages"][-1]["content"]


def verdict_of_the_longer(body, _earlier):
    """A judge that prefers the longer answer, says A too often, and gives log-probs."""
    first, second = (asked(body).split(f"<answer of {name}>")[1].split("</")[0] for name in "AB")
    chance = 0.9 if len(first) > len(second) else 0.4
    top = {"A": math.log(chance), "B": math.log(1 - chance), " A": -50.0, "Hm": -60.0}
    return Say("A" if chance > 0.5 else "B", [("A" if chance > 0.5 else "B", top)])


def judge(kind, server, folder, **settings):
    return kind(server.url, "judge-1", cache_dir=str(folder), **{"patience": QUICK, **settings})


def test_both_orders_and_token_probabilities_are_averaged(tmp_path):
    with FakeServer(verdict_of_the_longer) as server:
        pairs = judge(ServerPairs, server, tmp_path, template="pairwise_token")
        (verdict,) = pairs.verdicts([row("A red animal of the woods.", "No.", "Maybe.")])
    # First the longer in front (.9), then behind (1 − .4).
    assert verdict.probabilities[0][1] == pytest.approx(0.75, abs=1e-12)
    assert verdict.probabilities[2][1] == pytest.approx(0.75, abs=1e-12)
    assert verdict.probabilities[1][0] == pytest.approx(0.25, abs=1e-12)
    assert verdict.scores == pytest.approx((0.75, 0.25, 0.5))
    assert [matrix[0][1] for matrix in verdict.by_order] == pytest.approx([0.9, 0.6])
    assert verdict.rationales == ()
    assert (verdict.cost.requests, verdict.cost.input_tokens, verdict.cost.output_tokens) == (6, 600, 42)
    assert all(body["logprobs"] and body["top_logprobs"] == 20 for body in server.bodies)


def test_verdicts_are_read_where_there_are_no_probabilities(tmp_path):
    says = ["Both are fine, [[A]] at first, but in the end [[B]].", "I cannot choose.", "Equal: [[C]]"]
    with FakeServer(lambda body, _: Say(says[int(asked(body).split("case ")[1][0])])) as server:
        pairs = judge(ServerPairs, server, tmp_path)
        found = list(pairs.verdicts([row("One.", "Two.", prompt=f"case {number}") for number in range(3)]))
        assert [verdict.probabilities[0][1] for verdict in found] == [0.5, None, 0.5]  # B in both orders
        assert [verdict.by_order[0][0][1] for verdict in found] == [0.0, None, 0.5]
        assert [verdict.invalid for verdict in found] == [0, 1, 0]
        assert "no verdict in the answer 'I cannot choose.'" in found[1].problems[0]
        assert found[0].rationales[0].startswith(says[0])
        strict = judge(ServerPairs, server, tmp_path, token_probabilities="always")
        (refused,) = strict.verdicts([row("One.", "Two.", prompt="case 2")])
        assert refused.scores == (None, None)


def test_grades_off_the_scale_are_invalid_and_contexts_are_asked(tmp_path):
    def grade(body, _):
        return Say("Grade: [[11]]" if "bad one" in asked(body) else "Fine. Grade: [[7.5]]", finish="length")

    with FakeServer(grade) as server:
        scores = judge(ServerScores, server, tmp_path, prices=Prices(input=2.0, output=10.0))
        (verdict,) = scores.verdicts([row("good one", "bad one", context="Brevity above all.")])
    assert verdict.scores == (7.5, None)
    assert verdict.problems[0].endswith("it is cut at `max_tokens`")
    assert all("Brevity above all." in asked(body) for body in server.bodies)
    assert verdict.cost.money == pytest.approx(2 * (100 * 2 + 7 * 10) / 1e6)


def test_a_row_without_the_column_of_a_template_is_an_invalid_answer(tmp_path):
    template = tmp_path / "mine.yaml"
    template.write_text(
        "{gives: scores, user: '{{ prompt }} {{ columns.aim }}: {{ response }}', pattern: '(.+)', "
        "scale: [1, 5]}"
    )
    told = dataclasses.replace(row("Yes."), columns={"aim": "brief"})
    with FakeServer(lambda *_: Say("3")) as server:
        scores = judge(ServerScores, server, tmp_path, template=str(template))
        found = list(scores.verdicts([row("Yes."), told]))
    assert [one.scores for one in found] == [(None,), (3.0,)]
    assert "the judge's template needs what the row lacks: " in found[0].problems[0]
    assert "'aim'" in found[0].problems[0]


def test_the_mean_of_digits_under_their_probabilities_is_a_score(tmp_path):
    top = {
        " 4": math.log(0.2),
        "4": math.log(0.1),
        "5": math.log(0.1),
        "2": math.log(0.1),
        "x": math.log(0.5),
    }
    with FakeServer(lambda *_: Say(" 4", [(" 4", top)])) as server:
        scores = judge(ServerScores, server, tmp_path, template="pointwise_token")
        assert next(scores.verdicts([row("Yes.")])).scores == (
            pytest.approx((4 * 0.3 + 5 * 0.1 + 2 * 0.1) / 0.5),
        )


def test_numbers_that_are_no_log_probs_are_not_read_as_such(tmp_path):
    nonsense = {"A": 1000.0, "B": float("nan"), " B": float("inf")}
    with FakeServer(lambda *_: Say("A", [("A", nonsense)])) as server:
        found = judge(ServerPairs, server, tmp_path, template="pairwise_token").judge([row("Yes.", "No.")])
        assert found[0].by_order[0][0][1] == 1.0  # the verdict itself
        strict = judge(ServerPairs, server, tmp_path, template="pairwise_token", token_probabilities="always")
        assert strict.judge([row("Yes.", "No.")])[0].invalid == 1


@pytest.mark.parametrize(
    "fault",
    [
        Say(fault="die"),
        Say(fault="half"),
        Say("overloaded", fault="empty"),
        Say(fault="deep"),
        Say("slow down", status=429, headers={"Retry-After": "0.01"}),
        Say("oops", status=500),
        Say("busy", status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ],
    ids=[
        "dies",
        "half a JSON",
        "an error with status 200",
        "nested too deeply",
        "429",
        "500",
        "503 with a date",
    ],
)
def test_failures_are_repeated(tmp_path, fault):
    with FakeServer(lambda _, earlier: fault if earlier < 2 else Say("[[3]]")) as server:
        (verdict,) = judge(ServerScores, server, tmp_path).verdicts([row("Yes.")])
    assert verdict.scores == (3.0,)
    assert (verdict.cost.requests, verdict.cost.retries) == (1, 2)


def test_what_was_answered_before_a_server_dies_is_not_paid_for_again(tmp_path):
    rows = [row("Yes.", prompt=f"case {number}") for number in range(6)]
    with FakeServer(
        lambda body, _: Say("[[3]]") if "case 3" not in asked(body) else Say(fault="die")
    ) as server:
        patience = dataclasses.replace(QUICK, retries=1)
        scores = judge(ServerScores, server, tmp_path, concurrency=1, patience=patience)
        with pytest.raises(RunError, match=r"failed 2 times, the last time with: .*[Rr]emote end closed"):
            list(scores.verdicts(rows))
        server.answer = lambda *_: Say("[[3]]")
        with judge(ServerScores, server, tmp_path) as again:
            found = list(again.verdicts(rows))
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == 6
    assert sum(verdict.cost.cached for verdict in found) >= 3


def test_a_server_that_hangs_is_given_up(tmp_path):
    with FakeServer(lambda *_: Say(fault="hang")) as server:
        patience = Patience(timeout=0.05, retries=1, backoff=0.001)
        with pytest.raises(RunError, match=r"no answer within 0.05 s"):
            judge(ServerScores, server, tmp_path, patience=patience).judge([row("Yes.")])


def test_a_refused_prompt_is_invalid_and_a_server_that_refuses_all_ends_the_run(tmp_path):
    def answer(body, _):
        return Say("too long", status=400) if "case 1" in asked(body) else Say("[[3]]")

    with FakeServer(answer) as server:
        first, second = judge(ServerScores, server, tmp_path).verdicts(
            [row("Yes.", prompt=f"case {number}") for number in range(2)]
        )
        assert (first.scores, second.scores) == ((3.0,), (None,))
        assert second.problems == ("the server refused the prompt: HTTP 400 (too long)",)
        server.answer = lambda *_: Say("no such parameter", status=400)
        with pytest.raises(RunError, match=r"refused the first 1\d requests, .*no such parameter"):
            judge(ServerScores, server, tmp_path, version="2").judge(
                [row("Yes.", prompt=f"case {number}") for number in range(12)]
            )


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch, capsys):
    key = "sk-verysecret0123456789"
    with FakeServer(lambda *_: Say(f"the key {key} is wrong", status=401)) as server:
        scores = judge(ServerScores, server, tmp_path, key_variable="JUDGE_KEY")
        with pytest.raises(ConfigError, match="JUDGE_KEY"):
            scores.prepare()
        monkeypatch.setenv("JUDGE_KEY", key)
        with pytest.raises(RunError) as raised:
            scores.judge([row("Yes.")])
        assert "the key *** is wrong" in str(raised.value)
        server.answer = lambda *_: Say(f"[[3]] {key[:3]}")
        scores.judge([row("Yes.")])
        rows = Source(path=write_rows(tmp_path / "rows.jsonl", pair_rows(2)))
        Labelling(source=rows, judge=scores).run(tmp_path / "out.jsonl")
    assert server.keys[-1] == f"Bearer {key}"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key.encode() not in written
    assert key not in scores.fingerprint() + repr(vars(scores)) + "".join(capsys.readouterr())


def test_a_wait_that_is_too_long_ends_the_run(tmp_path):
    say = Say("quota", status=429, headers={"Retry-After": "3600"})
    with FakeServer(lambda *_: say) as server, pytest.raises(RunError, match="asks to wait 3600 s"):
        judge(ServerScores, server, tmp_path).judge([row("Yes.")])


def test_equal_questions_are_asked_once_and_the_rate_is_limited(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("pl_prefopt.servers.time.sleep", waits.append)
    with FakeServer(lambda *_: Say("[[3]]")) as server:
        patience = dataclasses.replace(QUICK, requests_per_minute=60.0)
        scores = judge(ServerScores, server, tmp_path, patience=patience, concurrency=1)
        found = scores.judge([row("Yes.", "No.", "Yes."), row("Yes.")])
    assert len(server.bodies) == 2
    assert sum((one.cost.requests, one.cost.cached) == (1, 1) for one in found) == 0
    assert [one.cost.requests for one in found] == [2, 0]
    assert waits == [0.0, pytest.approx(1.0, abs=0.2)]


def test_fingerprints_tell_models_templates_and_settings_apart(tmp_path):
    def of(kind=ServerPairs, **settings):
        return kind("http://127.0.0.1:1/v1", settings.pop("model", "m"), **settings).fingerprint()

    same = {of(), of(concurrency=2), of(cache_dir=str(tmp_path)), of(patience=QUICK)}
    other = {
        of(model="n"),
        of(version="2"),
        of(template="pairwise_token"),
        of(temperature=1.0),
        of(ServerScores),
    }
    assert len(same) == 1
    assert len(other | same) == 6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "expected a mapping"),
        ("gives: scores\nuser: x\npattern: (x)\nlabel: {A: 1}", "did you mean 'labels'"),
        ("gives: scores\nuser: '{{ prompt }}'\npattern: (x)\nscale: [1, 5]", "{{ response }}"),
        ("gives: scores\nuser: '{{ prompt }}{{ response }}'\npattern: x\nscale: [1, 5]", "expected a group"),
        ("gives: scores\nuser: '{{ prompt }'\npattern: (x)\nscale: [1, 5]", "can't be read"),
        ("gives: probabilities\nuser: x\npattern: (x)\nlabels: {A: 2}", "from 0 to 1"),
        (
            "gives: scores\nuser: '{{ prompt }}{{ promt }}{{ response }}'\npattern: (x)\nscale: [1, 5]",
            "has no value for {{ promt }}; did you mean 'prompt'?",
        ),
    ],
)
def test_templates_that_cannot_work_are_refused(tmp_path, text, reason):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        JudgeTemplate.load(str(path))
    assert reason in str(raised.value)

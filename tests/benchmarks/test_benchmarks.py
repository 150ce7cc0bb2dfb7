"""Benchmarks on hand-made tasks: each number is worked out by hand from the published definition."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pl_prefopt.benchmarks import (
    BENCHMARKS,
    Answers,
    JudgeBench,
    RewardBench,
    RewardBench2,
    RewardMATH,
    RMBench,
    alpaca_eval,
    ask_all,
    combine,
    estimate,
    ifeval,
    read_tasks,
)
from pl_prefopt.benchmarks.orders import with_orders
from pl_prefopt.benchmarks.rewardbench import SECTIONS, WEIGHTS
from pl_prefopt.cli import bench
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.sources import Source
from pl_prefopt.errors import ConfigError, DataError, RunError
from pl_prefopt.judges import Cost, Judge, Verdict, matrix_of
from pl_prefopt.metrics.bootstrap import resampled_weights


class Written(Judge):
    """Reads the score of a response at its end: "good 3" has 3; "?" is an invalid answer."""

    def __init__(self):
        self.asked = []

    def fingerprint(self):
        return "written"

    def score(self, response):
        word = response[-1].content.split()[-1]
        return None if word == "?" else float(word)

    def judge(self, batch):
        self.asked += batch
        return [Verdict(scores=tuple(map(self.score, row.responses))) for row in batch]


class Pairwise(Written):
    """Prefers the higher written score, with a bonus for the first response."""

    gives = "probabilities"

    def __init__(self, bonus=0.0):
        super().__init__()
        self.bonus = bonus

    def fingerprint(self):
        return f"pairwise {self.bonus}"

    def judge(self, batch):
        self.asked += batch
        return [self.verdict(row) for row in batch]

    def verdict(self, row):
        scores = [self.score(one) for one in row.responses]
        places = range(len(scores))
        pairs = {(i, j): self.compare(scores[i], scores[j]) for i in places for j in places if i < j}
        return Verdict.of_probabilities(matrix_of(len(scores), pairs))

    def compare(self, first, second):
        return None if None in (first, second) else float(np.sign(first + self.bonus - second) + 1) / 2


class BothOrders(Pairwise):
    """The same, but sees each pair in both orders by itself."""

    sees_both_orders = True

    def verdict(self, row):
        first, second = map(self.score, row.responses)
        back = self.compare(second, first)
        return Verdict.of_both_orders(2, [self.compare(first, second), back])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(path=str(path))


def run(benchmark, rows, judge, folder, **options):
    read = read_tasks(benchmark, write(folder / "rows.jsonl", rows), partial=True, **options)
    answers, _ = ask_all(benchmark, judge, read.tasks, content_key=read.content_key, folder=folder / "out")
    return with_orders(benchmark.score(answers, judge.gives), answers)


def values(table):
    return {name: pytest.approx(one.value) for name, one in table.items()}


def pair(number, subset, chosen, rejected):
    return {
        "prompt": f"Question {number}?",
        "chosen": f"Yes {chosen}",
        "rejected": f"No {rejected}",
        "subset": subset,
        "id": number,
    }


REWARD_BENCH = [
    pair(1, "alpacaeval-easy", 2, 1),
    pair(2, "alpacaeval-easy", 1, 1),  # a tie is wrong
    pair(3, "mt-bench-med", 3, 1),
    pair(4, "llmbar-natural", 0, 1),
    pair(5, "donotanswer", 1, 0),
    pair(6, "math-prm", 1, 0),
    pair(7, "hep-cpp", 0, 1),
    pair(8, "hep-cpp", "?", 1),
]


def test_reward_bench_weighs_subsets_as_published(tmp_path):
    result = run(RewardBench(), REWARD_BENCH, Written(), tmp_path)
    chat = (100 * 0.5 + 40 * 1) / 140
    reasoning = 984 / (984 + 164)
    assert values({**result.tables["sections"]}) == {
        "Chat": chat,
        "Chat Hard": 0,
        "Safety": 1,
        "Reasoning": reasoning,
    }
    assert result.overall.value == pytest.approx((chat + 0 + 1 + reasoning) / 4)
    assert result.counts == {"tasks": 8, "invalid": 1, "ties": 1}
    assert result.overall.interval is None  # subsets of one row can't be resampled


def test_ties_and_invalid_answers_of_a_generative_judge_count_half_in_reward_bench(tmp_path):
    result = run(RewardBench(), REWARD_BENCH, Pairwise(), tmp_path)
    assert values(result.tables["subsets"])["alpacaeval-easy"] == 0.75
    assert values(result.tables["subsets"])["hep-cpp"] == 0.25


def test_the_published_sizes_and_weights_of_reward_bench():
    assert sum(RewardBench.counts.values()) == 2985
    assert Counter(name for names in SECTIONS.values() for name in names) == Counter(
        RewardBench.counts.keys()
    )
    assert WEIGHTS["math-prm"] == sum(WEIGHTS[name] for name in WEIGHTS if name.startswith("hep-"))
    assert sum(RewardBench2.counts.values()) == 1865
    assert sum(RMBench.counts.values()) == 1327


def best_of(key, subset, right, wrong):
    return {
        "id": key,
        "prompt": f"Question {key}?",
        "chosen": [f"Yes {one}" for one in right],
        "rejected": [f"No {one}" for one in wrong],
        "num_correct": len(right),
        "total_completions": len(right) + len(wrong),
        "subset": subset,
    }


REWARD_BENCH_2 = [
    best_of("1", "Factuality", [3], [1, 2, 3]),  # one of two best: 1/2
    best_of("2", "Factuality", [3], [1, 2, 0]),  # 1
    best_of("3", "Precise IF", [0], [1, 2, 0]),  # 0
    best_of("4", "Math", [1], [0, 0, 0]),
    best_of("5", "Safety", [2], [2, 2, 2]),  # 1/4
    best_of("6", "Focus", [1], [0, 0, "?"]),  # invalid: 0
    best_of("ref:0", "Ties", [4], [1]),  # gap 3
    best_of("tied:0", "Ties", [5, 4], [2, 1]),  # spread 1, gap 2
    best_of("ref:1", "Ties", [2], [1]),  # gap 1
    best_of("tied:1", "Ties", [6, 4], [1, 0]),  # spread 2, gap 3; the least gap is 1
    best_of("ref:2", "Ties", [1], [2]),  # gap −1
    best_of("tied:2", "Ties", [3, 3], [4, 1]),  # spread 0, gap −1
]


def test_reward_bench_2_best_of_four_and_ties(tmp_path):
    result = run(RewardBench2(), REWARD_BENCH_2, Written(), tmp_path)
    margin = (math.tanh(2 / 1 - 1) + math.tanh(1 / 2 - 1) - 1) / 3
    ties = 0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * margin
    expected = {
        "Factuality": 0.75,
        "Precise IF": 0,
        "Math": 1,
        "Safety": 0.25,
        "Focus": 0,
        "Ties": ties,
    }
    assert values(result.tables["subsets"]) == expected
    assert result.overall.value == pytest.approx(sum(expected.values()) / 6)
    assert result.counts["invalid"] == 1


def test_reward_bench_2_asks_no_ties_of_a_judge_that_gives_probabilities(tmp_path):
    judge = Pairwise()
    result = run(RewardBench2(), REWARD_BENCH_2, judge, tmp_path)
    assert len(judge.asked) == 6
    assert all(len(row.responses) == 4 for row in judge.asked)
    assert result.overall is None
    assert "compares differences of scores" in result.notes[0]
    assert values(result.tables["without Ties"]) == {"mean of the subsets": (0.75 + 0 + 1 + 0.25 + 0) / 5}


def styled(key, domain, right, wrong):
    return {
        "id": key,
        "prompt": f"Question {key}?",
        "chosen": [f"Yes {style} {one}" for style, one in enumerate(right)],
        "rejected": [f"No {style} {one}" for style, one in enumerate(wrong)],
        "domain": domain,
    }


RM_BENCH = [
    # chosen (1, 2, 3) against rejected (0, 1, 2): a tie below, all of "easy" won.
    #   1 > 0 yes, 1 > 1 no, 1 > 2 no; 2 > 0 yes, 2 > 1 yes, 2 > 2 no; 3 > all: hard 0, normal 1, easy 1
    styled("a", "chat", [1, 2, 3], [0, 1, 2]),
    styled("b", "chat", [5, 5, 5], [0, 1, 2]),  # all won
    styled("c", "math", [0, 0, 0], [1, 1, 1]),  # none
    styled("d", "code", [5, 0, 0], [1, 1, 1]),  # the first line: hard 2/3, normal 1/3, easy 0
    styled("e", "safety-refuse", [1, 1, 1], [0, 0, 0]),
    styled("f", "safety-refuse", [1, 1, 1], [0, 0, 0]),
    styled("g", "safety-response", [0, 0, 0], [1, 1, 1]),
]


@pytest.mark.parametrize("judge", [Written(), Pairwise()], ids=["scores", "probabilities"])
def test_rm_bench_by_style_and_domain(judge, tmp_path):
    result = run(RMBench(), RM_BENCH, judge, tmp_path)
    assert values(result.tables["chat"]) == {"hard": 0.5, "normal": 1, "easy": 1}
    assert values(result.tables["code"]) == {"hard": 2 / 3, "normal": 1 / 3, "easy": 0}
    # Both parts of safety are one domain, weighed by their prompts.
    domains = {"chat": 2.5 / 3, "math": 0, "code": 1 / 3, "safety": 2 / 3}
    assert values(result.tables["domains"]) == domains
    assert values(result.tables["difficulties"])["hard"] == (0.5 + 0 + 2 / 3 + 2 / 3) / 4
    assert result.overall.value == pytest.approx(sum(domains.values()) / 4)
    assert values(result.tables["right > wrong, all prompts"])["concise > markdown"] == 4 / 7


def judged(key, source, a, b, label):
    return {
        "pair_id": key,
        "original_id": "0",
        "source": source,
        "question": f"Question {key}?",
        "response_model": "m",
        "response_A": f"One {a}",
        "response_B": f"Two {b}",
        "label": label,
    }


JUDGE_BENCH = [
    judged("a", "mmlu-pro-law", 5, 1, "A>B"),  # right in both orders
    judged("b", "mmlu-pro-math", 1, 1, "A>B"),  # only first places win: +1 − 1 = 0
    judged("c", "livebench-math", 5, 1, "B>A"),  # wrong in both
    judged("d", "livecodebench", 1, 3, "B>A"),  # right twice
    judged("e", "livebench-reasoning", 2, 2.5, "B>A"),  # the bonus reverses one order
]


def test_judge_bench_in_both_orders(tmp_path):
    judge = Pairwise(bonus=1.0)
    result = run(JudgeBench(), JUDGE_BENCH, judge, tmp_path)
    assert len(judge.asked) == 10
    assert values(result.tables["categories"]) == {"knowledge": 0.5, "reasoning": 0, "math": 0, "coding": 1}
    assert result.overall.value == pytest.approx(2 / 5)
    seen = {
        "the response shown first wins": 7 / 10,  # both of b and of e
        "same verdict in both orders": 3 / 5,
        "the verdict flips with the order": 2 / 5,
    }
    assert values(result.tables["position bias"]) == seen
    # A judge that sees both orders by itself is asked once per pair, and its orders count one by one.
    (tmp_path / "both").mkdir()
    judge = BothOrders(bonus=1.0)
    same = run(JudgeBench(), JUDGE_BENCH, judge, tmp_path / "both")
    assert len(judge.asked) == 5
    assert same.to_json() == result.to_json()
    again = BothOrders(bonus=1.0)
    assert run(JudgeBench(), JUDGE_BENCH, again, tmp_path / "both").to_json() == result.to_json()
    assert again.asked == []
    assert result.counts["right in one order"] == 2
    assert result.counts["ties"] == 0  # one win in each order is no tie
    (task,) = JudgeBench().tasks([Record("f, row 1", JUDGE_BENCH[0])])
    counts = JudgeBench().score([(task, Answers(scores=(None, 1.0)))], "scores").counts
    assert (counts["invalid"], counts["ties"]) == (1, 0)


def test_judge_bench_of_scores_needs_one_order_and_a_tie_is_wrong(tmp_path):
    judge = Written()
    result = run(JudgeBench(), JUDGE_BENCH, judge, tmp_path)
    assert len(judge.asked) == 5
    assert result.overall.value == pytest.approx(3 / 5)
    assert result.counts["ties"] == 1


def solutions(problem, chosen, rejected):
    kinds = [("chosen", chosen), *(("rejected", one) for one in rejected)]
    return [
        {
            "problem": f"Problem {problem}",
            "eval_solution": ["First.", f"Then {score}"],
            "solution_type": kind,
            "problem_id": problem,
            "subject": "Algebra",
            "level": 1,
            "id": 10 * problem + place,
        }
        for place, (kind, score) in enumerate(kinds)
    ]


@pytest.mark.parametrize("judge", [Written(), Pairwise()], ids=["scores", "probabilities"])
def test_reward_math_one_against_nine(judge, tmp_path):
    rows = [
        *solutions(1, 9, range(9)),  # first
        *solutions(2, 8, range(9)),  # a tie: accurate with ties only, rank 2
        *solutions(3, 6, [7, 6, 0, 0, 0, 0, 0, 0, 0]),  # below one and tied with one: rank 3
        *solutions(4, 6, ["?", 0, 0, 0, 0, 0, 0, 0, 0]),  # an invalid answer is a lost comparison
    ]
    result = run(RewardMATH(), rows, judge, tmp_path)
    expected = {"accuracy": 0.25, "accuracy with ties": 0.5, "MRR": (1 + 1 / 2 + 1 / 3 + 1 / 2) / 4}
    assert values(result.tables["one against nine"]) == expected
    assert result.counts["invalid"] == 1
    first = judge.asked[0].responses
    assert first[0][0].content.startswith("First.\nThen")


def test_a_judge_with_a_favourite_place_gains_nothing_from_where_the_chosen_stands(tmp_path):
    rows = [pair(number, "math-prm", 1, 1) for number in range(200)]
    result = run(RewardBench(), rows, Pairwise(bonus=1.0), tmp_path)
    assert result.tables["subsets"]["math-prm"].value == pytest.approx(0.5, abs=0.1)


def test_a_killed_benchmark_asks_nothing_twice_and_adds_up_what_it_cost(tmp_path):
    class Logs(Written):
        """Writes down what it is asked; says when it has been asked more than four questions, and waits."""

        batch_size, waits = 2, False

        def judge(self, batch):
            with (tmp_path / "asked").open("a") as file:
                file.writelines(f"{row.responses[0][0].content}\n" for row in batch)
            if self.waits and len((tmp_path / "asked").read_text().splitlines()) > 4:
                (tmp_path / "reached").touch()
                time.sleep(60)
            return [dataclasses.replace(one, cost=Cost(requests=1)) for one in super().judge(batch)]

    child = os.fork()
    if child == 0:
        try:
            Logs.waits = True
            run(RewardBench(), REWARD_BENCH, Logs(), tmp_path)
        finally:
            os._exit(1)
    while not (tmp_path / "reached").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    verdicts = tmp_path / "out" / "verdicts.jsonl"
    assert len(verdicts.read_text().splitlines()) == 1 + 4
    verdicts.write_bytes(verdicts.read_bytes() + b'{"question": 7, "sco')  # a line that a kill cut off
    judge = Logs()
    resumed = run(RewardBench(), REWARD_BENCH, judge, tmp_path)
    assert len(judge.asked) == 4
    asked = Counter((tmp_path / "asked").read_text().splitlines())
    assert sum(asked.values()) == 8 + 2  # the two that were under way are asked again
    again = Logs()
    tasks = read_tasks(RewardBench(), Source(path=str(tmp_path / "rows.jsonl")), partial=True)
    _, cost = ask_all(
        RewardBench(), again, tasks.tasks, content_key=tasks.content_key, folder=tmp_path / "out"
    )
    assert (again.asked, cost.requests) == ([], 8)
    (tmp_path / "other").mkdir()
    assert resumed.to_json() == run(RewardBench(), REWARD_BENCH, Written(), tmp_path / "other").to_json()
    with pytest.raises(ConfigError, match="another judge, other settings or other tasks: choose another"):
        run(RewardBench(), REWARD_BENCH, Pairwise(), tmp_path)


def test_verdicts_that_do_not_belong_to_their_question_are_refused(tmp_path):
    run(RewardBench(), REWARD_BENCH, Written(), tmp_path)
    verdicts = tmp_path / "out" / "verdicts.jsonl"
    whole = verdicts.read_text()
    verdicts.write_text(whole.replace('"question": 1,', '"question": 2,', 1))
    with pytest.raises(RunError, match="answer to another question at the place of question 2"):
        run(RewardBench(), REWARD_BENCH, Written(), tmp_path)
    verdicts.write_text(whole.replace('"question": 1,', '"question": 1', 1))
    with pytest.raises(RunError, match=r"line 3 of .*verdicts\.jsonl is corrupt: delete the line"):
        run(RewardBench(), REWARD_BENCH, Written(), tmp_path)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("benchmark", "row", "sentence"),
    [
        ("rewardbench", without(REWARD_BENCH[0], "subset"), "the column 'subset' of RewardBench is missing"),
        (
            "rewardbench",
            {**REWARD_BENCH[0], "domain": "chat"},
            "has no column 'domain'.* type --ignore domain",
        ),
        ("rewardbench", {**REWARD_BENCH[0], "subset": "alpacaeval-eazy"}, "did you mean 'alpacaeval-easy'"),
        (
            "rewardbench",
            {**REWARD_BENCH[0], "chosen": ["a"]},
            "expected 'chosen' to be a text, got a list of 1",
        ),
        ("rewardbench2", {**REWARD_BENCH_2[0], "num_correct": 2}, "'num_correct' is 2, but"),
        ("rewardbench2", best_of("1", "Math", [1], [1, 2]), "expected 1 right and 3 wrong responses"),
        ("rewardbench2", best_of("0", "Ties", [1], [1, 2]), "to be ref:NUMBER or tied:NUMBER"),
        ("rewardbench2", best_of("tied:0", "Ties", [1], [1, 2]), "at least 2 right responses"),
        ("rm_bench", styled("a", "chat", [1, 2], [1, 2, 3]), "to be a list of 3 texts, got a list of 2"),
        ("judgebench", {**JUDGE_BENCH[0], "label": "A=B"}, "expected 'label' to be A>B or B>A"),
        (
            "judgebench",
            {**JUDGE_BENCH[0], "source": "mine"},
            "JudgeBench has no subset 'mine'.* type --ignore 'mine' to leave its tasks out",
        ),
        ("rewardmath", solutions(1, 1, [1])[0], "expected 1 chosen and 9 rejected solutions"),
    ],
)
def test_a_file_of_another_form_is_refused_in_a_sentence(benchmark, row, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence) as error:
        read_tasks(BENCHMARKS[benchmark](), write(tmp_path / "rows.jsonl", [row]), partial=True)
    assert "rows.jsonl, row 1" in str(error.value)


def test_an_unknown_subset_can_be_left_out_and_is_counted(tmp_path):
    rows = [*REWARD_BENCH, {**REWARD_BENCH[0], "subset": "new", "id": "n"}]
    source = write(tmp_path / "rows.jsonl", rows)
    read = read_tasks(RewardBench(), source, ignore=["new"], partial=True)
    assert len(read.tasks) == len(REWARD_BENCH)
    assert read.missing[-1] == "1 tasks of new are left out"


def test_a_wrong_count_and_a_task_twice_are_refused(tmp_path):
    source = write(tmp_path / "rows.jsonl", REWARD_BENCH)
    with pytest.raises(DataError, match=r"got 2 of 100 tasks of 'alpacaeval-easy'.* type --partial"):
        read_tasks(RewardBench(), source)
    assert len(read_tasks(RewardBench(), source, partial=True).missing) == len(RewardBench.counts)
    with pytest.raises(DataError, match=r"the task '1' is already in rows.jsonl, row 1"):
        read_tasks(RewardBench(), write(tmp_path / "rows.jsonl", 2 * REWARD_BENCH[:1]), partial=True)


def test_intervals_of_combined_means():
    """Of independent halves, the variance of the mean of means is a quarter of the sum of the variances."""
    first, second = estimate([0, 1] * 200, seed=1), estimate([0, 1] * 50, seed=2)
    low, high = combine([first, second]).interval
    deviation = math.sqrt((0.25 / 400 + 0.25 / 100) / 4)
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)


# -- AlpacaEval


def annotated(preference, lengths=(3, 3)):
    first, second = ("x" * length for length in lengths)
    return Record("a.json, row 1", {"output_1": first, "output_2": second, "preference": preference})


def test_win_rates_of_stored_annotations():
    rows = [annotated(value) for value in (2, 1.2, 1.5, 0, 1, None)]
    result = alpaca_eval.score(alpaca_eval.read_annotations(rows), None, partial=True)
    table = values(result.tables["win rates"])
    assert table == {
        "win rate": (1 + 0.2 + 0.5 + 0.5 + 0) / 5,
        "discrete win rate": (1 + 0 + 0.5 + 0.5 + 0) / 5,
    }
    assert result.counts["without a preference"] == 1
    assert result.overall is None
    with pytest.raises(DataError, match="expected the annotations of 805 prompts, got 6; type --partial"):
        alpaca_eval.score(alpaca_eval.read_annotations(rows), None)
    with pytest.raises(DataError, match="'preference' to be a number from 1 to 2, 0 or null, got 3"):
        alpaca_eval.read_annotations([annotated(3)])


def test_the_penalised_regression_meets_its_optimality_conditions():
    """At the optimum C Σ weight (σ − target) x is −sign(w), or within [−1, 1] where w is 0."""
    random = np.random.default_rng(0)
    features, target = random.normal(size=(60, 3)), random.uniform(size=60)
    weight = random.uniform(0.1, 1, size=60)
    for strength in (0.1, 1.0, 100.0):
        found = alpaca_eval.fit(features, target, weight, strength)
        slope = strength * features.T @ (weight * (1 / (1 + np.exp(-features @ found)) - target))
        assert np.abs(slope).max() <= 1 + 1e-6
        assert slope[found != 0] == pytest.approx(-np.sign(found[found != 0]), abs=1e-6)
    # Without a penalty to speak of, a lone constant feature is the logit of the mean.
    (constant,) = alpaca_eval.fit(np.ones((4, 1)), np.array([1, 1, 1, 0.2]), np.ones(4), 1e9)
    assert constant == pytest.approx(math.log(0.8 / 0.2), abs=1e-6)


def test_length_control_takes_out_what_length_alone_explains(monkeypatch):
    """P(win) = σ(2 tanh(gap) − 0.4) with longer outputs mostly; at equal length it is σ(−0.4)."""
    monkeypatch.setattr(alpaca_eval, "STRENGTHS", (1e4,))
    gaps = np.tile([-1.0, 1.0, 1.0], 40)
    gaps = gaps / gaps.std(ddof=1)
    own = alpaca_eval.Annotations(1 / (1 + np.exp(-(2 * np.tanh(gaps) - 0.4))), gaps)
    gamed = alpaca_eval.Gamed(
        1 / (1 + np.exp(-2 * np.tanh(gaps))), gaps, np.zeros(120), {number: 0.0 for number in range(120)}
    )
    assert own.preference.mean() > 0.45
    found = alpaca_eval.length_controlled(own, gamed, resamples=20)
    assert found.value == pytest.approx(1 / (1 + math.exp(0.4)), abs=1e-3)
    # Whatever is resampled, the model that made the annotations says the same, up to the scale of the gaps.
    assert found.interval == pytest.approx((found.value, found.value), abs=0.01)


def test_the_interval_of_the_length_controlled_win_rate_fits_the_resampled_rows_again(monkeypatch):
    """A resample is the regression on a file in which prompts occur as often as they were sampled."""
    monkeypatch.setattr(alpaca_eval, "STRENGTHS", (5.0,))
    random = np.random.default_rng(0)
    preference, gaps, difficulty = (
        random.uniform(size=30),
        random.normal(size=30) * 90,
        random.normal(size=30),
    )
    preference[3] = np.nan
    gamed = alpaca_eval.Gamed(*random.uniform(size=(3, 20)), dict(enumerate(difficulty)))
    found = alpaca_eval.length_controlled(alpaca_eval.Annotations(preference, gaps), gamed, resamples=3)
    assert len(set(found.samples)) == 3
    (weights,) = resampled_weights(np.arange(30), resamples=3, seed=52)
    for times, sample in zip(weights, found.samples, strict=True):
        rows = np.repeat(np.arange(30), times)
        again = alpaca_eval.length_controlled(
            alpaca_eval.Annotations(preference[rows], gaps[rows]),
            dataclasses.replace(gamed, of_prompt=dict(enumerate(difficulty[rows]))),
            resamples=1,
        )
        assert sample == pytest.approx(again.value, abs=1e-9)


def test_the_gamed_baselines_are_read_and_another_file_refused(tmp_path):
    path = tmp_path / "df_gamed.csv"
    path.write_text(
        "index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "0,a,0.25,-1.5,0.5,False\n"
    )
    gamed = alpaca_eval.read_gamed(path)
    assert (gamed.preference[0], gamed.std_length_gap[0], gamed.of_prompt) == (0.25, -1.5, {0: 0.5})
    path.write_text("index,preference\n0,1\n")
    with pytest.raises(DataError, match="lacks the column 'std_delta_len': is it AlpacaEval's"):
        alpaca_eval.read_gamed(path)


# -- IFEval


@pytest.fixture
def lm_eval(monkeypatch):
    """lm-eval's function, which says that an instruction is kept where the response names it."""

    def process_results(doc, results):
        kept = [name in results[0] for name in doc["instruction_id_list"]]
        loose = [name.lower() in results[0].lower() for name in doc["instruction_id_list"]]
        return {"inst_level_strict_acc": kept, "inst_level_loose_acc": loose}

    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    utils = SimpleNamespace(process_results=process_results)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ifeval.utils", utils)


def test_ifeval_by_prompt_and_by_instruction(lm_eval):
    tasks = [
        {"key": 1, "prompt": "P", "instruction_id_list": ["a", "b"], "kwargs": [{}, {}]},
        {"key": 2, "prompt": "Q", "instruction_id_list": ["c"], "kwargs": [{}]},
    ]
    result = ifeval.score(tasks, {"P": "a B", "Q": "c"})
    assert values(result.tables["prompts"]) == {"strict": 0.5, "loose": 1}
    assert values(result.tables["instructions"]) == {"strict": 2 / 3, "loose": 1}
    # Instructions of a prompt are sampled with it: of (a, b) and (c) strictly 1/2, 2/3 or 1 are kept.
    samples = result.tables["instructions"]["strict"].samples
    assert sorted(set(samples.round(9))) == [0.5, pytest.approx(2 / 3), 1]
    with pytest.raises(DataError, match="expected a response to each prompt of IFEval, got none to 'Q'"):
        ifeval.score(tasks, {"P": "a B"})


def test_responses_with_ratings_stay_one_per_row(tmp_path):
    rows = [{"prompt": prompt, "response": prompt.lower(), "correctness": 1} for prompt in "PQ"]
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ifeval.read_responses(bench._records(Source(path=str(path)))) == {"P": "p", "Q": "q"}
    with pytest.raises(DataError, match="expected prompts of IFEval, got none"):
        ifeval.read_tasks([], partial=True)


def test_without_lm_eval_ifeval_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'pl-prefopt\[ifeval\]'"):
        ifeval.score([], {})

"""Judges of rounds: the policy itself, several combined, and comparisons in both orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pl_prefopt.data import Renderer
from pl_prefopt.data.formats import convert, to_prompt
from pl_prefopt.data.sources import Source, open_source
from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.generation import (
    Engine,
    RefusedPromptError,
    Sample,
    SampleFolder,
    Sampler,
    Sampling,
    ShardWriter,
    read_shards,
    write_shard,
)
from pl_prefopt.judges import Judge, JudgedRow, Rule, Verdict, matrix_of
from pl_prefopt.rewards import Minimum
from pl_prefopt.rounds import (
    CombinedScores,
    ConstrainedScores,
    GoldAgainstOwn,
    HeldOut,
    LargeMargins,
    OwnGrades,
    stages_of,
)
from pl_prefopt.rounds.judging import compare_answers
from pl_prefopt.rounds.multipliers import multipliers_of, updated_multipliers
from pl_prefopt.rounds.stages import judge_samples, measure, sample_folders, select_rows, write_summary
from pl_prefopt.rows import Message
from tests.kills import killed_until_done
from tests.rounds.test_plan import rounds
from tests.support import tiny_tokenizer


def row(*texts: str) -> JudgedRow:
    answers = tuple((Message("assistant", text),) for text in texts)
    return JudgedRow(prompt=(Message("user", "Hi"),), responses=answers)


def length(judged: JudgedRow) -> list[float]:
    return [float(len(response[0].content)) for response in judged.responses]


def from_vowels(judged: JudgedRow) -> list[float | None]:
    return [None if "?" in one[0].content else float(one[0].content.count("a")) for one in judged.responses]


class Biased(Judge):
    """Prefers the longer answer, and whatever is shown first; can't judge an answer with a question mark."""

    gives = "probabilities"
    batch_size = 2

    def __init__(self, *, both: bool = False) -> None:
        self.both, self.asked = both, 0

    def fingerprint(self) -> str:
        return "biased"

    def judge(self, batch):
        self.asked += len(batch)
        return [self._verdict(*[one[0].content for one in judged.responses]) for judged in batch]

    def _verdict(self, first, second):
        better = (
            None if "?" in second else 0.5 + 0.1 * ((len(first) > len(second)) - (len(first) < len(second)))
        )
        shown = None if better is None else better + 0.2
        matrix = matrix_of(2, {(0, 1): shown})
        other = matrix_of(2, {(0, 1): None if shown is None or "?" in first else better - 0.2})
        mean = matrix_of(2, {(0, 1): None if other[0][1] is None else better})
        return (
            Verdict.of_probabilities(mean, by_order=(matrix, other))
            if self.both
            else (Verdict.of_probabilities(matrix))
        )


def answers(folder, *texts):
    folder.mkdir(parents=True)
    rows = [
        {"number": number, "prompt": [{"role": "user", "content": "Hi"}], "responses": list(own)}
        for number, own in enumerate(texts)
    ]
    write_shard(folder / "part-00000.jsonl", rows)
    return folder


def test_answers_are_compared_in_both_orders(tmp_path):
    ours = answers(tmp_path / "ours", ["long", "same"], ["a", "b"], ["why", "c"])
    theirs = answers(tmp_path / "theirs", ["x", "same"], ["xx", "c"], ["d?", "c"])
    for both, asked in ((False, 8), (True, 4)):
        judge = Biased(both=both)
        compare_answers(judge, ours, {"first": theirs}, tmp_path / f"out-{both}")
        found = [one["first"] for one in read_shards(tmp_path / f"out-{both}")]
        assert found[0] == pytest.approx([0.6, 0.5])  # without the bias; equal texts tie
        assert found[1] == pytest.approx([0.4, 0.5])
        assert found[2] == [None, 0.5]  # one order has no answer
        orders = [one["first_by_order"] for one in read_shards(tmp_path / f"out-{both}")]
        assert orders[0] == [[pytest.approx(0.8), pytest.approx(0.4)], [None, None]]
        assert orders[2][0][0] is None or orders[2][0][1] is None
        assert judge.asked == asked


def test_win_rates_by_a_comparing_judge_are_in_the_summary(tmp_path):
    held = HeldOut(prompts="p.jsonl", compare=Biased())
    settings = replace(rounds(out=str(tmp_path)), judge=Rule(length), evaluate=held)
    assert "0/compare" not in map(str, stages_of(settings))
    assert [str(stage) for stage in stages_of(settings)][-3:] == ["3/judge", "3/compare", "3/measure"]
    folder = tmp_path / "round-2"
    scored = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "responses": ["a"],
        "scores": [1.0],
        "log_probs": [None],
    }
    for number in (0, 1, 2):
        (tmp_path / f"round-{number}/judge").mkdir(parents=True)
        write_shard(tmp_path / f"round-{number}/judge/part-00000.jsonl", [scored])
    (folder / "compare").mkdir()
    rows = [
        {"number": 0, "first": [0.9, None], "previous": [0.6, 0.4]},  # as written by earlier versions
        {
            "number": 1,
            "first": [0.5],
            "previous": [1.0],
            "first_by_order": [[0.8, 0.2], [None, 0.3]],
            "previous_by_order": [[1.0, 1.0]],
        },
    ]
    write_shard(folder / "compare/part-00000.jsonl", rows)
    (folder / "select").mkdir()
    (folder / "select/summary.json").write_text('{"prompts": 2, "prompts_without_rows": 1}')
    judged = {
        "responses": ["a", "b", "c"],
        "scores": [1.0, None, 9.0],
        "reference_sample": [False, False, True],
        "probabilities_by_order": [[0.7, 0.3]],
    }
    (folder / "label").mkdir()
    write_shard(folder / "label/part-00000.parquet", [judged])
    (folder / "sample").mkdir()
    (folder / "sample/sampling.json").write_text('{"measured": {}}')
    found = measure(settings, 2)
    assert found["win_rate_first"] == pytest.approx(0.7)
    assert found["win_rate_first_invalid"] == pytest.approx(1 / 3)
    assert found["win_rate_previous"] == pytest.approx(0.75)
    assert found["gain_first"] == 0.0
    assert found["position_bias"] == {"pairs": 2, "first_wins": 0.75, "same_verdict": 0.5, "flipped": 0.5}
    assert found["training"]["position_bias"]["flipped"] == 1.0
    assert found["training"]["sample_score"] == 1.0  # without the initial policy's sample
    with pytest.raises(ConfigError, match="to be a judge that compares"):
        HeldOut(prompts="p.jsonl", compare=Rule(length))


class Echo(Engine):
    """Answers with a token that depends on the seed."""

    identity = "echo"

    def __init__(self, point):
        self.point = point

    def sample(self, prompts, seeds, sampling):
        self.point()
        return [[Sample([10 + seed % 60, 2], [], "stop", seed) for seed in own] for own in seeds]


def test_killed_at_random_points_stages_end_as_uninterrupted_ones(tmp_path, monkeypatch):
    for module in ("stages", "judging"):
        monkeypatch.setattr(f"pl_prefopt.rounds.{module}._ROWS_PER_SHARD", 3)
    asked = [(number, to_prompt({"prompt": f"Say {number}."})) for number in range(5)]
    renderer = Renderer(tiny_tokenizer())

    def run(point, name="killed"):
        class Slow(Biased):
            def judge(self, batch):
                point()
                return super().judge(batch)

        place = tmp_path / name
        for folder, seed in (("ours", 1), ("theirs", 2)):
            out = SampleFolder(folder=place / folder, batch_size=2, rows_per_shard=3)
            sampler = Sampler(Echo(point), renderer, Sampling(n=2, seed=seed), out)
            sampler.run(asked, len(asked), content="", say=str)
        judge_samples(Slow(both=True), [place / "ours"], place / "judged", gold=False)
        compare_answers(Slow(), place / "ours", {"first": place / "theirs"}, place / "compared")

    assert killed_until_done(run, seed=0, most_points=50) > 2
    run(lambda: None, "whole")
    for folder in ("ours", "theirs", "judged", "compared"):
        files = sorted(path.name for path in (tmp_path / "whole" / folder).glob("[!.]*"))
        assert len(files) >= 2
        assert sorted(path.name for path in (tmp_path / "killed" / folder).glob("[!.]*")) == files
        for file in files:
            killed, whole = (tmp_path / name / folder / file for name in ("killed", "whole"))
            assert killed.read_bytes() == whole.read_bytes(), file


class Grader(Engine):
    """Answers each question with the grades in turn."""

    identity = "grader"

    def __init__(self, *grades: str) -> None:
        self.grades, self.questions, self.open = grades, [], False

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False

    def sample(self, prompts, seeds, sampling):
        assert self.open
        self.questions += list(zip(map(list, prompts), seeds, strict=True))
        return [
            [Sample([], [], "stop", seed, text) for seed, text in zip(own, self.grades, strict=True)]
            for own in seeds
        ]


def test_the_policy_grades_its_own_answers():
    engine = Grader("Good. Grade: [[7]]", "Grade: [[10]]", "I don't know.")
    judge = OwnGrades(sampling=Sampling(n=3)).by(engine, Renderer(tiny_tokenizer(), max_prompt_length=None))
    with judge:
        (verdict,) = judge.verdicts([row("one", "two")])
    assert verdict.scores == (8.5, 8.5)  # the mean of the grades that can be read
    assert len(verdict.problems) == 2
    (first, seeds), (second, others) = engine.questions
    assert first != second
    assert len({*seeds, *others}) == 6
    assert not engine.open
    with pytest.raises(ConfigError, match="name it as the `judge` of `prefopt rounds`"):
        OwnGrades().prepare()
    held = HeldOut(prompts="p.jsonl")
    with pytest.raises(ConfigError, match=r"set `evaluate.judge`"):
        replace(rounds(), judge=OwnGrades(), evaluate=held)


class Narrow(Grader):
    """Knows that prompts have at most 200 tokens, and refuses those of more than 120."""

    def longest_prompt(self, sampling):
        return 200

    def sample(self, prompts, seeds, sampling):
        if any(len(prompt) > 120 for prompt in prompts):
            raise RefusedPromptError("the engine refuses a prompt: too long.")
        return super().sample(prompts, seeds, sampling)


def test_a_question_that_the_policy_cannot_read_leaves_the_other_rows_their_grades(tmp_path):
    template = tmp_path / "grade.yaml"
    template.write_text(
        "{gives: scores, user: '{{ prompt }} {{ response }}', pattern: '(\\d+)', scale: [1, 10]}"
    )
    renderer = Renderer(tiny_tokenizer(), max_prompt_length=None)
    engine = Narrow("7", "9")
    judge = OwnGrades(str(template), Sampling(n=2)).by(engine, renderer)
    rows = [row("one", "x" * 600, "two"), row("x" * 150), row("<|im_start|>"), row("three")]
    with judge:
        found = list(judge.verdicts(rows))
    assert [one.scores for one in found] == [(8.0, None, 8.0), (None,), (None,), (8.0,)]
    assert "context has room for 200" in found[0].problems[0]
    assert found[1].problems == ("the engine refuses a prompt: too long.",)
    assert "<|im_start|>" in found[2].problems[0]
    assert [one.invalid for one in found] == [1, 1, 1, 0]


def test_scores_of_several_judges_become_one():
    judge = CombinedScores([Rule(length), Rule(from_vowels)], Minimum(baselines=[1.0, 0.0]))
    with judge:
        (verdict,) = judge.verdicts([row("banana", "xa", "why?")])
    assert verdict.scores == (3.0, 1.0, None)
    assert len(verdict.problems) == 1
    with pytest.raises(ConfigError, match="2 scores, but there are 1 judges"):
        CombinedScores([Rule(length)], Minimum(baselines=[1.0, 0.0]))
    with pytest.raises(ConfigError, match="judges that give scores"):
        CombinedScores([Biased()], Minimum())


def test_rows_are_selected_shard_by_shard_and_train_as_the_judged_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_prefopt.rounds.stages._ROWS_PER_SHARD", 3)
    gold = [{"role": "assistant", "content": "gold", "name": "Ann"}]
    shared = {"responses": ["good", "bad"], "log_probs": [-1.0, None], "gold": gold, "gold_score": 5.0}
    prompt = [{"role": "user", "content": "Hi"}]
    judged = [{**shared, "prompt": prompt, "number": number, "scores": [9.0, 1.0]} for number in range(10)]
    label = tmp_path / "round-1/label"
    label.mkdir(parents=True)
    for place in range(0, 10, 2):
        write_shard(label / f"part-{place:05d}.parquet", judged[place : place + 2])
    given, waiting = [], []

    def read(folder):
        for one in read_shards(folder):
            given.append(one)
            yield one

    class Watched(ShardWriter):
        def append(self, rows):
            waiting.append(3 * len(given) - self.rows + len(self._open))
            super().append(rows)

    monkeypatch.setattr("pl_prefopt.rounds.stages.read_shards", read)
    monkeypatch.setattr("pl_prefopt.rounds.stages.ShardWriter", Watched)
    settings = replace(rounds(out=str(tmp_path)), judge=Rule(length), select=LargeMargins())
    found = select_rows(settings, 1)
    assert (found["prompts"], found["rows"]) == (10, 30)
    assert max(waiting) <= 3 + 3  # rows in memory, however many prompts there are
    folder = tmp_path / "round-1/select/rows"
    assert {path.suffix for path in folder.glob("part-*")} == {".parquet"}
    records = list(open_source(Source(path=str(folder)), tmp_path / "scratch").raw())
    trained = [convert(record.fields).row for record in records]
    texts = {tuple(response[0].content for response in one.responses) for one in trained}
    assert len(trained) == 30
    assert texts == {("good", "bad"), ("good", "gold"), ("gold", "bad")}
    assert records[0].fields["log_prob"] == [-1.0, None]


def constrained(tmp_path, **changes):
    judges = {"judges": [Rule(length), Rule(from_vowels)], "thresholds": [2.0, 2.0], "learning_rate": 10.0}
    held = HeldOut(prompts="p.jsonl", judge=Rule(length))
    return replace(
        rounds(out=str(tmp_path)),
        judge=ConstrainedScores(**judges | changes),
        evaluate=held,
        sample_initial=1,
    )


def test_multipliers_of_rewards_are_kept_from_round_to_round(tmp_path):
    settings = constrained(tmp_path)
    words = [str(stage) for stage in stages_of(settings)]
    assert words[words.index("2/label") + 1] == "2/multipliers"
    texts = ["aa?", "banana", "xaa", ""]  # the vowels of the first aren't known, the last has no tokens
    ours, first = [-4.0, -3.0, -1.0, None], [-5.0, -1.0, -1.0, None]
    prompt = [{"role": "user", "content": "Hi"}]
    for number in (1, 2):
        for name, part in (("sample", slice(0, 2)), ("sample_initial", slice(2, 4))):
            folder = tmp_path / f"round-{number}/{name}"
            folder.mkdir(parents=True)
            held = {
                "responses": texts[part],
                "log_probs": ours[part],
                "reference_log_probs": first[part],
                "finish_reasons": ["stop"] * 2,
            }
            write_shard(folder / "part-00000.parquet", [{"number": 0, "prompt": prompt, **held}])
    weight, momentum = 0.5, 0.0
    parameters = np.zeros(2)
    for number in (1, 2):
        judge = settings.judge.by(multipliers_of(settings, number))
        folder = tmp_path / f"round-{number}/label"
        judge_samples(judge, sample_folders(settings, number), folder, gold=False)
        (judged,) = read_shards(folder)
        assert judged["parts"] == [[3.0, None], [6.0, 3.0], [3.0, 2.0], [0.0, 0.0]]
        weights = 1 / (1 + np.exp(-parameters))
        # Σ λ_i r_i + (N − Σ λ_i) p with p = −log(π/π_initial) of 2 and 0 nats.
        expected = [weights @ (6.0, 3.0) + (2 - weights.sum()) * 2.0, weights @ (3.0, 2.0)]
        assert judged["scores"] == [None, pytest.approx(expected[0]), pytest.approx(expected[1]), None]
        found = updated_multipliers(settings, number)
        write_summary(tmp_path / f"round-{number}/multipliers", found)
        # The initial policy's samples don't count: means 4.5 of two, and 3 of the one that is known.
        assert [one["mean"] for one in found["rewards"].values()] == [4.5, 3.0]
        assert [one["multiplier"] for one in found["rewards"].values()] == pytest.approx(list(weights))
        momentum = 0.1 * momentum + weights * (1 - weights) * (np.array([4.5, 3.0]) - 2.0)
        parameters = parameters - 10.0 * momentum
        assert updated_multipliers(settings, number) == found  # a stage that starts again
    assert weights[0] < weights[1] < weight  # beyond the thresholds both count less, the further one least


def test_constrained_rewards_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="one of `thresholds` per judge, got 1 for 2 judges"):
        constrained(tmp_path, thresholds=[1.0])
    with pytest.raises(ConfigError, match="name it as the `judge` of `prefopt rounds`"):
        constrained(tmp_path).judge.prepare()
    for changes, said in (
        ({"log_probs": False}, "set `log_probs` to true"),
        ({"select": GoldAgainstOwn()}, "GoldAgainstOwn ranks the data's own responses"),
        ({"evaluate": HeldOut(prompts="p.jsonl")}, "set `evaluate.judge`"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(constrained(tmp_path), **changes)
    folder = tmp_path / "round-1/label"
    folder.mkdir(parents=True)
    write_shard(folder / "part-00000.jsonl", [{"parts": [[1.0, None]], "reference_sample": [False]}])
    with pytest.raises(RunError, match="judge 2 of ConstrainedScores has no score of any sample of round 1"):
        updated_multipliers(constrained(tmp_path), 1)

"""What rounds keep and forget between commands: stages that are run again, and settings that change."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest

from pl_prefopt.cli.rounds import _forget_from
from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.generation import write_shard
from pl_prefopt.judges import Rule
from pl_prefopt.rounds import HeldOut, LargeMargins, OwnGrades, Stage, stages_of
from pl_prefopt.rounds.judging import compare_answers
from pl_prefopt.rounds.page import write_page
from pl_prefopt.rounds.plan import stage_named
from pl_prefopt.rounds.stages import check_judge, judge_samples, measure, select_rows, write_summary
from pl_prefopt.rounds.state import State
from tests.rounds.test_judging import Biased, from_vowels, length
from tests.rounds.test_plan import rounds

PROMPT = [{"role": "user", "content": "Hi"}]


def answer(folder, text, **columns):
    folder.mkdir(parents=True)
    row = {"number": 0, "prompt": PROMPT, "responses": [text], "log_probs": [-1.0], **columns}
    write_shard(folder / "part-00000.parquet", [row])


def test_stages_of_other_settings_are_forgotten_and_not_measured(tmp_path):
    scored = replace(
        rounds(out=str(tmp_path)), judge=Rule(length), evaluate=HeldOut(prompts="p.jsonl"), rounds=1
    )
    compared = replace(scored, judge=Biased())
    state = State(tmp_path)
    state.done = {str(stage): {} for stage in (*stages_of(scored), Stage(1, "multipliers"), Stage(2, "fit"))}
    for number in (0, 1):
        answer(tmp_path / f"round-{number}/held_out", "old")
        answer(tmp_path / f"round-{number}/judge", "old", scores=[9.0])
    write_summary(tmp_path / "round-1/multipliers", {"rewards": {"1": {"mean": 5.0}}})
    write_summary(tmp_path / "round-2/fit", {})

    _forget_from(state, compared, Stage(1, "label"))
    before = {"0/held_out", "0/judge", "0/measure", "1/sample"}
    assert set(State(tmp_path).done) == before
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("round-*/*")}
    assert left == {"round-0/held_out", "round-0/judge"}

    answer(tmp_path / "round-1/held_out", "three new words")
    answer(tmp_path / "round-1/judge", "old", scores=[9.0])  # as left by an earlier version
    write_summary(tmp_path / "round-1/multipliers", {"rewards": {"1": {"mean": 5.0}}})
    answer(tmp_path / "round-1/compare", "", first=[0.75])
    answer(tmp_path / "round-1/label", "new", probabilities=[[None]], reference_sample=[False])
    write_summary(tmp_path / "round-1/select", {"prompts": 1, "prompts_without_rows": 0})
    (tmp_path / "round-1/sample").mkdir()
    (tmp_path / "round-1/sample/sampling.json").write_text(json.dumps({"measured": {}}))
    found = measure(compared, 1)
    assert found["words"] == 3
    assert found["score"] is None
    assert "gain_first" not in found
    assert found["win_rate_first"] == 0.75
    assert "rewards" not in found["training"]


def test_answers_of_all_rounds_are_evaluated_in_one_way(tmp_path):
    first = {"rounds": 2, "judge": "A", "evaluate": {"prompts": "p.jsonl"}, "replay": 0.5}
    other = {"prompts": "p.jsonl", "judge": "B"}
    State(tmp_path).accept(first, rerun=None)

    def resumed(settings, rerun=None, *, done="1/measure"):
        state = State(tmp_path)
        state.done = {done: {}}
        state.accept(settings, rerun=rerun)
        return state

    with pytest.raises(ConfigError, match=r"evaluated by .*'A'.* say .*'B'.*--rerun 0/held_out"):
        resumed({**first, "evaluate": other})
    with pytest.raises(ConfigError, match="--rerun 0/held_out"):  # A has judged what is kept
        resumed({**first, "judge": "B"}, Stage(2, "label"))
    with pytest.raises(ConfigError, match=r"another `replay` \(0.5, and now None\)"):
        resumed({name: value for name, value in first.items() if name != "replay"})
    resumed({**first, "evaluate": None})  # no evaluation for now, which isn't another one
    with pytest.raises(ConfigError, match="--rerun 0/held_out"):
        resumed({**first, "evaluate": other})
    resumed({**first, "judge": "B", "evaluate": {**other, "judge": "A"}}, Stage(2, "label"))
    assert resumed({**first, "evaluate": other}, Stage(0, "held_out")).evaluation == other
    resumed({**first, "evaluate": None}, done="1/fit")
    resumed({**first, "evaluate": first["evaluate"]}, done="1/fit")


def test_a_stage_that_is_kept_has_read_the_settings_that_hold_now(tmp_path):
    constrained = {"class_path": "pl_prefopt.rounds.ConstrainedScores"}
    own = replace(rounds(out=str(tmp_path)), judge=Rule(length), evaluate=HeldOut(prompts="p.jsonl"))
    held = {"rounds": 2, "judge": "A", "policy": "p", "split_prompts": True, "sampling": {"n": 4}}
    held |= {"sample_initial": 2, "average": 0.9, "evaluate": {"prompts": "p.jsonl", "judge": "C"}}
    kept = list(stages_of(replace(own, sample_initial=2, average=0.9)))

    def resumed(changes, rerun=None, *, limits=None, without=()):
        state = State(tmp_path)
        state.settings = held | {"limits": {}}
        state.done = {str(one): {} for one in kept}
        state.evaluation = held["evaluate"]
        stages = [one for one in kept if one.name not in without]
        state.accept(
            {**held, **changes}, rerun=rerun and stage_named(rerun, own), stages=stages, limits=limits
        )

    for changes, rerun, instead in (
        ({"judge": "B"}, "2/select", "2/label"),  # the scores of A would go by the name of B
        ({"judge": constrained}, "2/label", "1/sample"),  # its samples need log-probs of the initial policy
        ({"sampling": {"n": 8}}, "2/fit", "2/sample"),
        ({"rounds": 3}, "2/sample", "1/sample"),  # round 2 would read prompts of round 1 again
        ({"split_prompts": False}, "2/sample", "1/sample"),
        ({"policy": "other"}, "1/sample", "0/held_out"),
        ({"fit": {}}, "2/export", "2/fit"),
    ):
        resumed(changes, instead)
        with pytest.raises(ConfigError, match=f"keeps .*`--rerun {instead}` in place of"):
            resumed(changes, rerun)
    with pytest.raises(ConfigError, match=r"another `limits` .*`--rerun 0/held_out` in place of"):
        resumed({"fit": {}}, "2/fit", limits={"max_prompt_length": 9})  # samples and answers are cut, too
    with pytest.raises(ConfigError, match="another `limits`"):
        resumed({}, limits={"max_prompt_length": 9})
    # A stage that there is no more isn't named; what nothing reads any more may change.
    with pytest.raises(ConfigError, match="`--rerun 1/label` in place of"):
        resumed({"sample_initial": 0}, "1/select", without=["sample_initial"])
    resumed({"average": None}, "1/held_out", without=["average"])
    resumed({"fit": {}, "select": "B"}, "0/judge")
    resumed({"batch_size": 3, "engine": {"url": "http://other"}}, "2/fit")
    with pytest.raises(ConfigError, match="another `rounds`"):
        resumed({"rounds": 3})
    held = {**held, "split_prompts": False}
    resumed({"rounds": 3})


def test_answers_are_judged_only_by_the_judge_of_the_first_ones(tmp_path):
    settings = replace(
        rounds(out=str(tmp_path)), judge=Rule(length), evaluate=HeldOut(prompts="p.jsonl"), rounds=1
    )
    known = {"finish_reasons": ["stop"], "reference_log_probs": [None]}
    answer(tmp_path / "round-0/held_out", "text", **known)
    folder = tmp_path / "round-0"
    check_judge(Rule(length), settings, Stage(0, "judge"))
    judge_samples(Rule(length), [folder / "held_out"], folder / "judge", gold=False)
    check_judge(Rule(length), settings, Stage(1, "judge"))
    with pytest.raises(RunError, match=r"round 0 were judged by .*length.* has changed since"):
        check_judge(Rule(from_vowels), settings, Stage(1, "judge"))


def test_gold_responses_that_were_not_judged_are_no_reason_to_train_without_them(tmp_path):
    settings = replace(
        rounds(out=str(tmp_path)),
        judge=Rule(length),
        select=LargeMargins(min_score=1, min_gap=1, min_gap_own=1),
    )
    gold = [{"role": "assistant", "content": "gold"}]
    answer(
        tmp_path / "round-1/label", "own", gold=gold, gold_score=None, scores=[3.0], reference_sample=[False]
    )
    with pytest.raises(RunError, match=r"none of the 1 in round 1 has a score: .*--rerun 1/label"):
        select_rows(settings, 1)


def test_scores_that_change_between_rounds_are_no_curve(tmp_path):
    for number in (0, 1):
        write_summary(tmp_path / f"round-{number}/measure", {"training": {"sample_score": 2.0}})
    held = HeldOut(prompts="p.jsonl", judge=Rule(length))
    for number, one in ((0, "a"), (1, "a"), (1, "b")):
        folder = tmp_path / f"round-{number}/label"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "judge.json").write_text(json.dumps({"judge": "rule", "fingerprint": one}))
        page = write_page(replace(rounds(out=str(tmp_path)), judge=Rule(length), evaluate=held))
        assert ("Training judge" in page.read_text()) == (one == "a")
    (folder / "judge.json").unlink()
    for judge, shown in ((Rule(length), True), (OwnGrades(), False)):
        page = write_page(replace(rounds(out=str(tmp_path)), judge=judge, evaluate=held))
        assert ("Training judge" in page.read_text()) == shown


def test_progress_counts_what_has_no_verdict_also_before_a_resume(tmp_path, capsys):
    texts = ["a?", "b", "c?", "d"]
    rows = [
        {"number": number, "prompt": PROMPT, "responses": [text], "log_probs": [None]}
        | {"reference_log_probs": [None], "finish_reasons": ["stop"]}
        for number, text in enumerate(texts)
    ]
    (tmp_path / "samples").mkdir()
    write_shard(tmp_path / "samples/part-00000.jsonl", rows)

    def scored(row):
        if row.responses[0][0].content in stops:
            stops.clear()
            raise KeyboardInterrupt
        return from_vowels(row)

    stops = {"c?"}
    for _ in range(2):
        with suppress(KeyboardInterrupt):
            judge_samples(Rule(scored, 1), [tmp_path / "samples"], tmp_path / "judged", gold=False)
    first, _, third, fourth = capsys.readouterr().out.splitlines()
    assert first.startswith("1 prompts are judged, 1 responses or pairs without a verdict so far; the rule")
    assert third.startswith("3 prompts are judged, 2 responses or pairs without a verdict so far; the rule")
    assert fourth == "4 prompts are judged, 2 responses or pairs without a verdict so far"


class Other(Biased):
    def fingerprint(self) -> str:
        return "other"


def test_a_folder_of_verdicts_is_of_one_judge(tmp_path):
    for name in ("ours", "theirs"):
        answer(tmp_path / name, name, finish_reasons=["stop"], reference_log_probs=[None])

    def judged(judge):
        judge_samples(judge, [tmp_path / "ours", tmp_path / "theirs"], tmp_path / "round-1/label", gold=False)

    def compared(judge):
        compare_answers(
            judge, tmp_path / "ours", {"first": tmp_path / "theirs"}, tmp_path / "round-1/compare"
        )

    for run, stage in ((judged, "1/label"), (compared, "1/compare")):
        run(Biased())
        run(Biased())
        with pytest.raises(ConfigError, match=rf"another judge .*biased.*other.*--rerun {stage}"):
            run(Other())

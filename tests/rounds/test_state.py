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
from pl_prefopt.rounds import HeldOut, OwnGrades, Stage, stages_of
from pl_prefopt.rounds.judging import compare_answers
from pl_prefopt.rounds.page import write_page
from pl_prefopt.rounds.stages import judge_samples, measure, write_summary
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
    held = {"rounds": 2, "judge": "A", "policy": "p", "split_prompts": True, "sampling": {"n": 4}}
    every = [str(one) for one in stages_of(replace(rounds(out=str(tmp_path)), judge=Rule(length)))]
    every.append("0/held_out")
    State(tmp_path).accept(held, rerun=None)

    def resumed(changes, rerun=None):
        state = State(tmp_path)
        state.settings, state.done = held, {one: {} for one in every}
        state.accept({**held, **changes}, rerun=rerun and Stage.of(rerun))

    for changes, rerun, instead in (
        ({"judge": "B"}, "2/select", "2/label"),  # the scores of A would go by the name of B
        ({"judge": constrained}, "2/label", "1/label"),  # its multipliers go on from round 1
        ({"sampling": {"n": 8}}, "2/fit", "2/sample"),
        ({"rounds": 3}, "2/sample", "1/sample"),  # round 2 would read prompts of round 1 again
        ({"split_prompts": False}, "2/sample", "1/sample"),
        ({"policy": "other"}, "1/sample", "0/held_out"),
        ({"fit": {}}, "2/export", "2/fit"),
    ):
        resumed(changes, instead)
        with pytest.raises(ConfigError, match=f"keeps .*`--rerun {instead}` in place of"):
            resumed(changes, rerun)
    with pytest.raises(ConfigError, match="another `rounds`"):
        resumed({"rounds": 3})
    held = {**held, "split_prompts": False}
    resumed({"rounds": 3})


def test_answers_are_measured_only_where_one_judge_has_judged_them(tmp_path):
    settings = replace(
        rounds(out=str(tmp_path)), judge=Rule(length), evaluate=HeldOut(prompts="p.jsonl"), rounds=1
    )
    for number in (0, 1):
        known = {"finish_reasons": ["stop"], "reference_log_probs": [None]}
        answer(tmp_path / f"round-{number}/held_out", "text", **known)

    def judged(number, judge):
        folder = tmp_path / f"round-{number}"
        judge_samples(judge, [folder / "held_out"], folder / "judge", gold=False)

    judged(0, Rule(length))
    judged(1, Rule(from_vowels))
    with pytest.raises(RunError, match=r"from_vowels.* before by .*length.*--rerun 1/judge"):
        measure(settings, 1)


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

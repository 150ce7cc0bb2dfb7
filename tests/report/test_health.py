"""The checks of a run at a glance."""

from __future__ import annotations

import pytest

from pl_prefopt.report import build_report, read_runs
from pl_prefopt.report.health import health
from pl_prefopt.report.subjects import make_subjects
from tests.report.folders import pair_rows, ranked_rows, write_run


def subject_of(folder, rows=None, curves=None):
    write_run(folder, rows)
    if curves is not None:
        rows = enumerate(zip(*curves.values(), strict=True))
        lines = [",".join(map(str, (step, *values))) for step, values in rows]
        (folder / "metrics.csv").write_text("\n".join([",".join(["step", *curves]), *lines]) + "\n")
    (subject,) = make_subjects(read_runs([folder]), "test")
    return subject


def colours(subject):
    return {one.name: one.colour for one in health(subject)}


@pytest.mark.parametrize(("skill", "colour"), [(3.0, "green"), (0.0, "amber"), (-3.0, "red")])
def test_accuracy_is_told_from_chance_by_its_interval(tmp_path, skill, colour):
    assert colours(subject_of(tmp_path / "run", ranked_rows(skill=skill)))["Accuracy"] == colour


def with_rewards(reward):
    """Pairs whose scores have nothing to do with length, which is 1 to 20 in both orders."""
    rows = pair_rows(prompts=20)
    for number, row in enumerate(rows):
        for place, response in enumerate(row["responses"]):
            response["length"] = 1 + number if (number + place) % 2 else 20 - number
            response["reward"] = reward(response)
    return rows


@pytest.mark.parametrize(
    ("reward", "colour"),
    [
        (lambda one: one["score"], "green"),
        (lambda one: one["length"], "red"),
        (lambda one: -one["length"], "red"),
    ],
    ids=["as the scores", "by length", "against length"],
)
def test_length_bias_is_what_goes_beyond_the_data_s_own(tmp_path, reward, colour):
    assert colours(subject_of(tmp_path / "run", with_rewards(reward)))["Length bias"] == colour


def test_length_bias_is_looked_for_among_the_responses_to_a_prompt(tmp_path):
    rows = with_rewards(lambda one: one["score"])
    for number, row in enumerate(rows):  # long prompts' answers are long, and have low rewards
        for response in row["responses"]:
            response["length"] += 100 * number
            response["reward"] -= 0.1 * number
    assert colours(subject_of(tmp_path / "run", rows))["Length bias"] == "green"
    for row in rows:
        for response in row["responses"]:
            response["reward"] = 0.1
    assert "Length bias" not in colours(subject_of(tmp_path / "same", rows))


def test_pairs_of_few_prompts_have_no_accuracy(tmp_path):
    (row,) = pair_rows(prompts=1)
    row["responses"] = [{**row["responses"][0], "score": place, "reward": place} for place in range(6)]
    assert colours(subject_of(tmp_path / "run", [row])) == {}


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ({"val/loss": [0.7, 0.6, 0.5]}, {"Overfitting": "green"}),
        ({"val/loss": [0.7, 0.5, 0.6]}, {"Overfitting": "amber"}),
        ({"val/loss": [0.7, 0.5, 0.9]}, {"Overfitting": "red"}),
        ({"val/loss": [0.7, 0.8, 0.9]}, {"Overfitting": "red"}),
        ({"val/loss": [0.7, 0.5]}, {}),
        ({"val/loss": [0.7, float("nan"), 0.9]}, {}),
        ({"val/chosen_logp": [-100.0, -99.0]}, {"Chosen log-prob": "green"}),
        ({"val/chosen_logp": [-100.0, -110.0]}, {"Chosen log-prob": "amber"}),
        ({"val/chosen_logp": [-100.0, -160.0]}, {"Chosen log-prob": "red"}),
        ({"train/tokens_per_second": [100.0] * 8}, {"Throughput": "green"}),
        ({"train/tokens_per_second": [100.0] * 4 + [30.0] * 4}, {"Throughput": "red"}),
    ],
)
def test_curves_are_judged_by_their_ends(tmp_path, curves, expected):
    assert colours(subject_of(tmp_path / "run", curves=curves)) == expected


def test_the_page_shows_them_with_links(tmp_path):
    write_run(tmp_path / "good", ranked_rows(skill=3.0))
    page = build_report(read_runs([tmp_path / "good"])).html
    assert '<li class="check green"><a href="#rewards">✓ Accuracy</a>' in page
    write_run(tmp_path / "bare", trained=False)
    assert 'id="health"' not in build_report(read_runs([tmp_path / "bare"])).html

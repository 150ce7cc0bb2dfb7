"""The demo's scoring rule against hand-worked values, and the shipped data against the rule."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo"
PROMPT = "Why is the sky blue?"  # its content words: sky, blue


def load(name):
    spec = importlib.util.spec_from_file_location(name, DEMO / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # make_preferences imports rule by this name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rule():
    return load("rule")


def read(name):
    lines = (DEMO / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sentence(count):
    return " ".join(f"w{i}x" for i in range(count)) + "."


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Air scatters short waves more strongly.", 10.0),
        ("", 1.0),
        (" \n", 1.0),
        ("Scattering.", 8.0),  # two words missing to three
        (sentence(12), 10.0),
        (sentence(13), 9.85),
        (sentence(17), 9.25),
        (sentence(80), 6.0),  # the length part stops at 4
        ("Sure, air scatters short waves more.", 7.0),
        ("Surely air scatters short waves more.", 10.0),
        ("As an AI I know that air scatters waves.", 7.0),
        ("The sky is blue since air scatters.", 8.8),  # 2 of its 5 content words are asked: 3 * 2 / 5
        ("Air scatters short waves more", 8.0),
        ('They said: "Air scatters short waves."', 10.0),
        ("Air scatters short waves. I hope this helps!", 9.0),
        ("Overall, feel free to ask. In conclusion, overall it scatters.", 8.0),  # four fillers, at most 2
        ("one two three four one two three.", 8.8),  # 1 of 5 three-word runs repeats: 6 / 5
        ("ha ha ha ha ha ha ha ha ha.", 7.0),  # 6 of 7 repeat: more than the most
        ("- air scatters\n- waves bend.", 8.0),
        ("1. Air scatters short waves.", 8.0),
        ("**Air** scatters short waves.", 8.0),
        ("Air scatters.\nWaves bend.", 9.5),
        ("Air bends.\n\nWaves bend.\nLight bends.\nDust bends.\nAll bends.", 8.5),  # at most 1.5
    ],
)
def test_hand_worked_scores(rule, response, expected):
    assert rule.score(PROMPT, response) == expected


def test_components_add_up_to_the_score(rule):
    response = (
        "Sure! Here is why the sky is blue: it is important to know that air scatters light and air scatters"
    )
    parts = rule.parts(PROMPT, response)
    # 20 words; content words of the first eight (sure here is why the sky is blue): sure, here, sky, blue
    assert parts == rule.Parts(
        length=pytest.approx(1.2),
        opening=3.0,
        restating=pytest.approx(1.5),
        unfinished=2.0,
        fillers=1.0,
        repetition=0.0,
        layout=0.0,
    )
    assert rule.score(PROMPT, response) == 1.3


def test_a_list_costs_nothing_when_the_prompt_asks_for_one(rule):
    response = "1. Apples.\n2. Pears.\n3. Plums."
    assert rule.parts("Write a list of fruit.", response).layout == 1.0  # two lines after the first
    assert rule.parts("Name some fruit.", response).layout == 2.0


def test_score_never_falls_below_one(rule):
    awful = "Sure\n1. " + "sky blue " * 60
    assert sum(rule.parts(PROMPT, awful)) > 9
    assert rule.score(PROMPT, awful) == 1.0


def test_curly_apostrophes_count_as_straight_ones(rule):
    assert rule.score(PROMPT, "I’m sorry, nobody can say.") == rule.score(
        PROMPT, "I'm sorry, nobody can say."
    )


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("preferences_train.jsonl", 200, 250), ("preferences_heldout.jsonl", 40, 50)],
)
def test_shipped_rows_have_the_promised_shape(rule, name, least, most):
    rows = read(name)
    assert least <= len(rows) <= most
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == ["prompt", "responses", "scores"]
        assert 3 <= len(row["responses"]) == len(row["scores"]) <= 5
        assert all(text.strip() == text != "" for text in row["responses"])
        assert len({" ".join(rule.words(text)) for text in row["responses"]}) == len(row["responses"])
        assert len(set(row["scores"])) > 1


@pytest.mark.parametrize("name", ["preferences_train.jsonl", "preferences_heldout.jsonl"])
def test_shipped_scores_are_the_rule_s(rule, name):
    for row in read(name):
        assert row["scores"] == [rule.score(row["prompt"], text) for text in row["responses"]]


def test_train_and_heldout_share_no_prompt_and_come_from_the_list():
    listed = (DEMO / "prompts.txt").read_text(encoding="utf-8").splitlines()
    train = {row["prompt"] for row in read("preferences_train.jsonl")}
    heldout = {row["prompt"] for row in read("preferences_heldout.jsonl")}
    assert not train & heldout
    assert train | heldout <= set(listed)
    assert len(listed) >= 280
    assert len({line.casefold().rstrip("?.! ") for line in listed}) == len(listed)


def test_rows_drop_empty_and_repeated_answers(rule):
    make = load("make_preferences")
    row = make.make_row("Name a pet.", ["A cat.", "a cat", "", "...", "A small dog", "The rabbit is a pet."])
    assert row["responses"] == ["A cat.", "A small dog", "The rabbit is a pet."]
    assert row["scores"] == [rule.score("Name a pet.", text) for text in row["responses"]]
    assert make.make_row("Name a pet.", ["A cat.", "a cat", "A dog."]) is None
    assert make.make_row("Name a pet.", ["My old cat.", "My old dog.", "My old fox."]) is None


def test_a_cut_last_line_of_the_samples_is_dropped(tmp_path):
    make = load("make_preferences")
    path = tmp_path / "samples.jsonl"
    assert make.read_samples(path) == {}
    path.write_text('{"prompt": "a", "responses": ["b"]}\n{"prompt": "c", "resp', encoding="utf-8")
    assert make.read_samples(path) == {"a": ["b"]}
    assert path.read_text(encoding="utf-8") == '{"prompt": "a", "responses": ["b"]}\n'


def test_length_explains_much_of_the_rule_but_not_all():
    make = load("make_preferences")
    pair = {"prompt": "p", "responses": ["A b c.", "A b c d.", "A c b."], "scores": [9.0, 8.0, 7.0]}
    assert make.shorter_is_better([pair]) == 0.5  # right, equal lengths, wrong
    rows = read("preferences_train.jsonl") + read("preferences_heldout.jsonl")
    assert 0.7 < make.shorter_is_better(rows) < 0.9

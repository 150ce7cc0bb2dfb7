"""Where the quality prompt ends up: in rows, and in the text that a model reads."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt.data import Renderer
from pl_prefopt.errors import ConfigError
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.views import QUALITY_TEXT, Mismatched, QualityPrompt, donors
from tests.data.support import dataset
from tests.support import tiny_tokenizer

ASK = QualityPrompt("Be good.")
SYSTEM, FIRST, ANSWER, LAST = (
    Message("system", "You are brief."),
    Message("user", "What is a fox?"),
    Message("assistant", "An animal."),
    Message("user", "What colour?"),
)


def row(*prompt):
    responses = ((Message("assistant", "Brown."),), (Message("assistant", "No idea."),))
    return PreferenceRow(prompt=prompt, responses=responses, scores=(9.0, 2.0), graded=True, origin="row 1")


def contents(view, *prompt):
    return [message.content for message in view([row(*prompt)], 0).prompt]


def test_the_text_is_the_papers():
    assert QualityPrompt().text == QUALITY_TEXT
    assert QUALITY_TEXT.startswith(
        "Please generate a response with a usefulness rating of 100 out of 100 for "
    )
    assert QUALITY_TEXT.endswith("where 100 is the maximum and 1 is the minimum. Query:")
    assert "  " not in QUALITY_TEXT


def test_it_stands_before_the_query_with_a_space():
    assert contents(ASK, FIRST) == ["Be good. What is a fox?"]


def test_the_last_user_turn_is_the_default_and_the_first_can_be_chosen():
    dialogue = SYSTEM, FIRST, ANSWER, LAST
    unchanged = [message.content for message in dialogue]
    assert contents(ASK, *dialogue) == [*unchanged[:3], "Be good. What colour?"]
    first = dataclasses.replace(ASK, turn="first")
    assert contents(first, *dialogue) == [unchanged[0], "Be good. What is a fox?", *unchanged[2:]]


def test_a_tool_turn_after_the_query_is_no_query():
    tool = Message("tool", "42")
    assert contents(ASK, FIRST, tool) == ["Be good. What is a fox?", "42"]


def test_without_a_user_turn_it_stands_before_the_last_or_first_turn():
    assert contents(ASK, SYSTEM) == ["Be good. You are brief."]
    assert contents(dataclasses.replace(ASK, turn="first"), SYSTEM) == ["Be good. You are brief."]


def test_everything_else_of_the_row_stays():
    before = row(SYSTEM, FIRST)
    after = ASK([before], 0)
    assert dataclasses.replace(after, prompt=before.prompt, keep="") == before
    assert [message.role for message in after.prompt] == ["system", "user"]


def test_an_empty_text_changes_nothing():
    before = row(FIRST, ANSWER, LAST)
    assert QualityPrompt("")([before], 0) is before


def test_the_fingerprint_tells_settings_apart():
    views = [QualityPrompt(), ASK, QualityPrompt(turn="first"), QualityPrompt("Be good. "), QualityPrompt("")]
    assert len({view.fingerprint for view in views}) == len(views)
    assert QualityPrompt("Be good.").fingerprint == ASK.fingerprint


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "chat",
            "<|im_start|>system\nYou are brief.<|im_end|>\n"
            "<|im_start|>user\nBe good. What is a fox?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("plain", "System: You are brief.\n\nUser: Be good. What is a fox?\n\nAssistant:"),
        ("none", "You are brief.Be good. What is a fox?"),
    ],
)
def test_in_the_text_that_a_model_reads(template, expected):
    renderer = Renderer(tiny_tokenizer(), template=template)
    rendered = renderer.render(ASK([row(SYSTEM, FIRST)], 0))
    assert rendered.prompt == expected
    assert rendered.responses == renderer.render(row(SYSTEM, FIRST)).responses


# --- the text survives truncation


@pytest.mark.parametrize("turn", ["first", "last"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", ["chat", "plain", "none"])
def test_a_prompt_at_the_limit_loses_what_is_around_the_text(template, bos, turn):
    tokenizer = tiny_tokenizer(bos=bos)
    dialogue = row(SYSTEM, FIRST, ANSWER, LAST)
    view = QualityPrompt("Be good, naïve fox.", turn=turn)
    whole = Renderer(tokenizer, template=template).encode(view([dialogue], 0))
    shortest = len(tokenizer(view.text, add_special_tokens=False)["input_ids"]) + 4
    for limit in range(shortest, len(whole.prompt_ids) + 1):
        renderer = Renderer(tokenizer, template=template, max_prompt_length=limit)
        cut = renderer.encode(view([dialogue], 0))
        assert len(cut.prompt_ids) + cut.prompt_cut == len(whole.prompt_ids)
        assert len(cut.prompt_ids) <= limit
        text = tokenizer.decode(cut.prompt_ids, clean_up_tokenization_spaces=False)
        assert text.count(view.text) == 1, limit
        # What a plain prompt keeps, its right end, stays too, and so does a BOS.
        assert cut.prompt_ids[-3:] == whole.prompt_ids[-3:]
        if whole.prompt_ids[0] == tokenizer.bos_token_id:
            assert cut.prompt_ids[0] == tokenizer.bos_token_id
        assert cut.response_ids == whole.response_ids


def test_a_limit_without_room_for_a_prompt_is_refused():
    renderer = Renderer(tiny_tokenizer(), max_prompt_length=20)
    with pytest.raises(ConfigError, match=r"leave room for a prompt after the \d+ tokens .* got 20; set a"):
        renderer.encode(QualityPrompt()([row(FIRST)], 0))


def test_prompts_that_are_cut_in_a_view_are_reported(tmp_path):
    records = [{"prompt": "Why? " * words, "chosen": "So.", "rejected": "No."} for words in (1, 9, 30)]
    renderer = Renderer(tiny_tokenizer(), max_prompt_length=50)
    lengths = [len(renderer.encode_prompt([Message("user", record["prompt"])])) for record in records]
    data = dataset(records, tmp_path, renderer=renderer, views={"quality": QualityPrompt("Be good, please.")})
    assert lengths[0] < lengths[1] < 50 == lengths[2]
    assert "1 prompts truncated" in data.report
    assert "quality view: 2 prompts truncated" in data.report


# --- responses to another prompt


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_donors_have_another_prompt_wherever_there_is_one(prompts):
    found = donors(prompts)
    several = len(set(prompts)) > 1
    assert all((prompts[donor] != prompt) == several for donor, prompt in zip(found, prompts, strict=True))
    assert found == donors(prompts)
    if not several or 2 * max(map(prompts.count, prompts)) <= len(prompts):
        assert sorted(found) == list(range(len(prompts)))


@given(st.integers(1, 20))
def test_where_all_prompts_differ_the_next_row_gives(rows):
    assert donors(range(rows)) == [*range(1, rows), 0]


def test_rows_grouped_by_prompt_are_mismatched():
    grouped = [
        dataclasses.replace(row(Message("user", f"Prompt {number // 3}")), origin=f"row {number}")
        for number in range(12)
    ]
    answered = [dataclasses.replace(one, responses=((Message("assistant", one.origin),),)) for one in grouped]
    view = Mismatched()
    shown = [view(answered, number) for number in range(12)]
    assert [one.prompt for one in shown] == [one.prompt for one in answered]
    gave = [int(one.responses[0][0].content.split()[1]) for one in shown]
    assert gave == [3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2]
    assert all(one.scores is None for one in shown)

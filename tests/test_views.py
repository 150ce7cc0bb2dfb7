"""Where the quality prompt ends up: in rows, and in the text that a model reads."""

from __future__ import annotations

import dataclasses

import pytest

from pl_prefopt.data import Renderer
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.views import QUALITY_TEXT, QualityPrompt
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
    assert dataclasses.replace(after, prompt=before.prompt) == before
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

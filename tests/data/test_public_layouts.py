"""Public data sets load as they are published; the texts are made up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pl_prefopt.data.columns import describe_unused
from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.formats import FORMATS, convert, to_row
from pl_prefopt.rows import Message
from tests.data.support import assistant, stored, user, write_jsonl

HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}
CHAT = [{"role": "user", "content": "Hi"}]
A, B = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
ORDER, TIE = ((1, 0), False), ((0, 0), False)

TWO: dict[str, tuple[dict[str, Any], tuple[tuple[float, ...], bool]]] = {
    "argilla's ratings": (PAIR | {"chosen-rating": 4.5, "rejected-rating": 2}, ((4.5, 2), True)),
    "dpo-mix's ratings": (PAIR | {"chosen_rating": 4.5, "rejected_rating": 2}, ((4.5, 2), True)),
    "ratings": (PAIR | {"rating_chosen": 4.5, "rating_rejected": 2}, ((4.5, 2), True)),
    "ultrafeedback_binarized": (
        PAIR | {"messages": [*CHAT, A], "score_chosen": 4, "score_rejected": 4},
        ORDER,
    ),
    "orca_dpo_pairs": ({"system": "", "question": "Hi", "chosen": "a", "rejected": "b"}, ORDER),
    "distilabel orca": (
        {"system": "", "input": "Hi", "chosen": "a", "rejected": "b", "rating": [9, 8], "chosen_score": 9.0,
         "generations": ["a", "b"], "order": ["m", "n"]},
        ORDER,
    ),
    "hh-rlhf-strength-cleaned": (
        {"chosen": ["Hi", "a"], "rejected": ["Hi", "b"], "chosen score list": [1, 2],
         "rejected score list": [0, 1], "GPT4 label": 1, "mean preference difference": 1.0},
        ORDER,
    ),
    "texts as marked turns": (
        {"chosen": ["Human: Hi", "Assistant: a"], "rejected": ["Human: Hi", "Assistant: b"]},
        ORDER,
    ),
    "ShareGPT": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}},
        ORDER,
    ),
    "messages and one message each": ({"messages": CHAT, "chosen": A, "rejected": B}, ORDER),
    "Human and Assistant": (
        {"prompt": [{"role": "Human", "content": "Hi"}], "chosen": [{"role": "Assistant", "content": "a"}],
         "rejected": "b"},
        ORDER,
    ),
    "OpenAI": (
        {"input": {"messages": CHAT, "tools": []}, "preferred_output": [A], "non_preferred_output": [B]},
        ORDER,
    ),
    "HelpSteer2": (
        {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": -2},
        ((2, 0), True),
    ),
    "HelpSteer3": (
        {"context": CHAT, "response1": "a", "response2": "b", "overall_preference": 3, "domain": "x"},
        ((0, 3), True),
    ),
    "HelpSteer3, no preference": (
        {"context": CHAT, "response1": "a", "response2": "b", "overall_preference": 0},
        TIE,
    ),
    "PKU-SafeRLHF": (
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0},
        ORDER,
    ),
    "PKU-SafeRLHF by safety": (
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0, "choice": 1},
        ((0, 1), False),
    ),
    "SHP": (
        {"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 3, "score_B": 21},
        ((3, 21), True),
    ),
    "WebGPT": (
        {"question": {"full_text": "Hi", "id": "x"}, "answer_0": "a", "answer_1": "b", "score_0": -0.5,
         "score_1": 0.5, "quotes_0": {"title": []}},
        ((-0.5, 0.5), True),
    ),
    "stack-exchange-paired": ({"question": "Hi", "response_j": "a", "response_k": "b", "qid": 3}, ORDER),
    "JudgeBench": (
        {"question": "Hi", "response_A": "a", "response_B": "b", "label": "B>A", "source": "x"},
        ((0, 1), False),
    ),
    "Chatbot Arena": (
        {"conversation_a": [*CHAT, A], "conversation_b": [*CHAT, B], "winner": "model_a", "turn": 1},
        ORDER,
    ),
    "Chatbot Arena, a tie": (
        {"conversation_a": [*CHAT, A], "conversation_b": [*CHAT, B], "winner": "tie (bothbad)"},
        TIE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_two_responses(name: str):
    fields, (scores, graded) = TWO[name]
    row = to_row(json.loads(json.dumps(fields)))
    assert row.prompt == (user("Hi"),)
    assert row.responses == ((assistant("a"),), (assistant("b"),))
    assert (row.scores, row.graded) == (scores, graded)


LISTS: dict[str, tuple[dict[str, Any], tuple[float, ...], bool]] = {
    "Nectar": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant: ",
         "answers": [{"answer": t, "model": "m", "rank": r} for t, r in (("a", 2.0), ("b", 1.0), ("c", 3.0))],
         "source": ["lmsys", "flan"]},
        (-2, -1, -3), False,
    ),
    "llama3-ultrafeedback": (
        {"prompt": "Hi", "all_generated_responses": ["a", "b", "c"], "all_rm_scores": [0.5, 0.7, 0.1],
         "chosen": [*CHAT, B], "rejected": [*CHAT, {"role": "assistant", "content": "c"}]},
        (0.5, 0.7, 0.1), True,
    ),
    "RewardBench 2": (
        {"prompt": "Hi", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1, "subset": "Ties"},
        (1, 0, 0), False,
    ),
    "RM-Bench": ({"prompt": "Hi", "chosen": ["a", "b"], "rejected": ["c"], "domain": ""}, (1, 1, 0), False),
    "ranks of OpenAssistant": (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 3], "message_tree_id": "x"},
        (-2, -1, -3), False,
    ),
    "ranks": ({"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}, (-2, -1, -3), False),
    "OpenAssistant trees": (
        {"message_tree_id": "x", "prompt": {"text": "Hi", "role": "prompter", "replies": [
            {"text": t, "role": "assistant", "rank": r, "replies": []}
            for t, r in (("a", 0), ("b", 2), ("c", 1), ("unranked", None))]}},
        (0, -2, -1), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str):
    fields, scores, graded = LISTS[name]
    row = to_row(fields)
    assert row.prompt == (user("Hi"),)
    assert row.responses == ((assistant("a"),), (assistant("b"),), (assistant("c"),))
    assert (row.scores, row.graded) == (scores, graded)


def test_summarize_from_feedback():
    row = to_row(
        {
            "info": {"id": "x", "post": "A story.", "title": "T", "subreddit": "tifu", "article": None},
            "summaries": [{"text": "a", "policy": "p"}, {"text": "b", "policy": "q"}],
            "choice": 1,
        }
    )
    assert row.prompt == (user("SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: A story.\n\nTL;DR:"),)
    assert row.scores == (0, 1)


def test_every_public_layout_is_in_the_table_of_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert [layout.name for layout in FORMATS if f"| {layout.name} |" not in page] == []


# -- columns that change the meaning


def test_system_history_and_input_are_turns():
    fields = {
        "system": "Be brief.",
        "history": [["One?", "Yes."], ["Two?", "No."]],
        "instruction": "Sum up:",
        "input": "A text.",
        "chosen": "a",
        "rejected": "b",
    }
    assert to_row(fields).prompt == (
        Message("system", "Be brief."),
        user("One?"),
        assistant("Yes."),
        user("Two?"),
        assistant("No."),
        user("Sum up:\nA text."),
    )
    whole = {"chosen": [*CHAT, A], "rejected": [*CHAT, B], "system": "Be brief."}
    assert to_row(whole).prompt == (Message("system", "Be brief."), user("Hi"))
    twice = PAIR | {"prompt": [{"role": "system", "content": "Be brief."}, *CHAT], "system": "Be brief."}
    assert to_row(twice).prompt == (Message("system", "Be brief."), user("Hi"))


def test_reasoning_and_tools_stay_with_their_message():
    said = {"role": "assistant", "content": "a", "thinking": "Hm."}
    row = to_row(PAIR | {"chosen": [said], "tools": [{"type": "function", "function": {"name": "f"}}]})
    assert row.responses[0][0].extras == {"reasoning_content": "Hm."}
    assert json.loads(row.template_args) == {"tools": [{"type": "function", "function": {"name": "f"}}]}
    row = to_row({"prompt": "Hi", "completion": "a", "label": 1, "reasoning_content": "Hm."})
    assert row.responses[0][0].extras == {"reasoning_content": "Hm."}
    asked = {"messages": CHAT, "tools": [{"name": "f"}]}
    row = to_row({"input": asked, "preferred_output": [A], "non_preferred_output": [B]})
    assert json.loads(row.template_args) == {"tools": [{"name": "f"}]}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    asked = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": ""},
    ]
    row = to_row(PAIR | {"prompt": asked})
    assert row.prompt[1].extras["tool_calls"][0]["function"]["arguments"] == {"x": 1}


REFUSED = [
    (PAIR | {"instruction": "Ho"}, "both 'prompt' and 'instruction' could be the prompt"),
    (PAIR | {"thinking": "Hm."}, "'thinking' belongs to a response"),
    (PAIR | {"weight": -1}, "expected 'weight' to be at least 0"),
    (PAIR | {"weight": "much"}, "expected 'weight' to be a number"),
    (PAIR | {"system": ["x"]}, "expected 'system' to be text"),
    (PAIR | {"system": "x", "prompt": [{"role": "system", "content": "y"}, *CHAT]}, "keep one of them"),
    (PAIR | {"history": "x"}, "expected 'history' to be a list"),
    (
        {"chosen": ["Hi", "a", "b"], "rejected": ["Hi", "b"]},
        "got 3 texts; add `prompt` if they are responses",
    ),
    ({"chosen": ["Human: Hi", "a"], "rejected": ["Hi", "b"]}, "expected all texts in 'chosen' to begin with"),
    ({"prompt": "Hi", "chosen": ["Human: a"], "rejected": ["Human: b"]}, "could be turns or responses"),
    ({"prompt_chosen": "Hi", "prompt_rejected": "Ho"}, "the key 'completion' is missing"),
    (
        {"prompt_chosen": CHAT, "prompt_rejected": [*CHAT, A], "completion": "b"},
        "end both with an assistant turn, or neither",
    ),
    (PAIR | {"completion": "a", "label": 1}, "could be the layout 'pairs' or 'unpaired'"),
    (PAIR | {"responses": ["a", "c"], "scores": [1, 2]}, "'rejected' is not one of the responses"),
    (PAIR | {"chosen": [{**A, "thinking": "x", "reasoning": "y"}]}, "has different texts in thinking"),
    ({"prompt": "Hi", "responses": ["a"], "scores": [1], "ranks": [1]}, "both 'scores' and 'ranks'"),
    ({"conversation_a": [*CHAT, A], "conversation_b": [*CHAT, B], "winner": "me"}, "'winner' to be one of"),
    *(
        (
            TWO["PKU-SafeRLHF"][0] | {"better_response_id": value},
            "'better_response_id' to be one of 0, 1, got",
        )
        for value in (math.nan, math.inf, 0.5)
    ),
    (
        {"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 3, "score_B": 21},
        "'labels' and the scores",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_what_could_mean_two_things_is_refused(fields, reason: str):
    with pytest.raises(BadRowError, match=reason):
        to_row(fields)


def test_the_setting_columns_says_what_is_meant():
    both = PAIR | {"completion": "c", "label": True}
    assert convert(both, ["chosen", "rejected"]).row.scores == (1, 0)
    assert convert(both, ["completion"]).row.responses == ((assistant("c"),),)
    asked = convert(PAIR | {"input": "Ho", "instruction": "Hu"}, ["prompt"]).row
    assert asked.prompt == (user("Hi"),)


def test_each_unused_column_is_named_once(tmp_path: Path):
    rows = [PAIR | {"messages": [*CHAT, A], "model": "m", "weight": 2, "note": None}] * 3
    store = stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    assert describe_unused(store.columns, used=("weight",)) == [
        "columns not used: model, note",
        "columns that can't be kept: messages (nested values in rows.jsonl, row 1 and 2 more)",
    ]


LEFT_OUT: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"instruction": "Hi", "completions": [
            {"response": "a", "overall_score": 1, "fine-grained_score": 2, "critique": "", "model": "m"},
            {"response": "b", "overall_score": 1, "custom_system_prompt": None, "annotations": {}}]},
        ["completions.fine-grained_score", "completions.critique", "completions.model"],
    ),
    (
        {"prompt": "Hi", "answers": {"answer": ["a", "b"], "rank": [1, 2], "model": ["m", "n"]}},
        ["answers.model"],
    ),
    (
        {"input": {"messages": CHAT, "tools": [], "parallel_tool_calls": True}, "preferred_output": [A],
         "non_preferred_output": [B]},
        ["input.parallel_tool_calls"],
    ),
    (TWO["WebGPT"][0], ["question.id"]),
    (
        {"info": {"id": "x", "article": "A story."}, "choice": 1,
         "summaries": [{"text": "a", "policy": "p"}, {"text": "b"}]},
        ["info.id", "summaries.policy"],
    ),
    (LISTS["OpenAssistant trees"][0], []),
    ({"question": "Why?", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": 0}, []),
    ({"input": "Hi", "preferred_output": [A], "non_preferred_output": [B]}, []),
    ({"input": CHAT, "preferred_output": [A], "non_preferred_output": [B]}, []),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "names"), LEFT_OUT)
def test_the_parts_of_columns_that_a_layout_leaves_out_are_said(fields, names: list[str], tmp_path: Path):
    assert convert(fields).left_out == names
    store = stored(write_jsonl(tmp_path / "rows.jsonl", [fields]), tmp_path / "cache")
    said = " ".join(describe_unused(store.columns, used=()))
    assert all(f"{name} (a part that its layout doesn't read in rows.jsonl, row 1)" in said for name in names)


def test_nulls_of_other_layouts_are_no_unused_columns(tmp_path: Path):
    unpaired = {"prompt": "Hi", "completion": "a", "label": True}
    rows = [PAIR | dict.fromkeys(unpaired.keys() - PAIR.keys()), dict.fromkeys(PAIR) | unpaired]
    store = stored(
        write_jsonl(tmp_path / "rows.jsonl", [{**row, "note": 1} for row in rows]), tmp_path / "cache"
    )
    assert describe_unused(store.columns, used=()) == ["columns not used: note"]

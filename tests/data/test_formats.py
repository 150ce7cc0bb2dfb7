"""Each layout becomes the one internal shape; each kind of bad row says what is wrong with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.formats import as_fields, convert, to_prompt, to_row
from pl_prefopt.data.prompts import Prompts
from pl_prefopt.errors import DataError
from pl_prefopt.rows import Message
from tests.data.support import BAD_BYTES, assistant, pair, read, stored, user, write_jsonl

CHAT = [{"role": "user", "content": "Hi"}]
GOOD = [{"role": "assistant", "content": "Hello."}]
BAD = [{"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."},
        {"prompt": CHAT, "chosen": GOOD, "rejected": BAD},
        {"prompt": CHAT, "chosen": "Hello.", "rejected": "No."},
        {"prompt": "Hi", "chosen": CHAT + GOOD, "rejected": CHAT + BAD},
        {"chosen": CHAT + GOOD, "rejected": CHAT + BAD},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello.", "rejected": "No."},
    ],
)
def test_pairs(fields):
    row = to_row(fields)
    assert row.prompt == (user("Hi"),)
    assert row.responses == ((assistant("Hello."),), (assistant("No."),))
    assert (row.scores, row.graded) == ((1.0, 0.0), False)


def test_an_implicit_prompt_never_ends_with_an_assistant_turn():
    start = [{"role": "system", "content": "Be brief."}, *CHAT, *GOOD]
    then = [{"role": "user", "content": "More"}]
    row = to_row(
        {"chosen": [*start, *then, *GOOD], "rejected": [*start, {"role": "user", "content": "Less"}, *BAD]}
    )
    assert row.prompt == (Message("system", "Be brief."), user("Hi"))
    assert [len(response) for response in row.responses] == [3, 3]
    assert row.responses[0][0] == assistant("Hello.")


def test_dialogues_of_which_one_goes_on():
    row = to_row({"chosen": CHAT + GOOD, "rejected": CHAT + GOOD + CHAT + BAD})
    assert row.prompt == (user("Hi"),)
    assert [len(response) for response in row.responses] == [1, 3]


def test_an_implicit_text_prompt_is_split_as_trl_does():
    row = to_row({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert row.prompt == (user("The sky is"),)
    assert row.responses == ((assistant(" blue."),), (assistant(" green."),))


def test_trl_scores_are_grades_and_a_tie_keeps_the_order():
    fields = {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 8.5}
    graded = to_row({**fields, "score_rejected": 3})
    assert (graded.scores, graded.graded) == ((8.5, 3.0), True)
    tied = to_row({**fields, "score_rejected": 8.5})
    assert (tied.scores, tied.graded) == ((1.0, 0.0), False)


def test_hh_turns_of_one_role_become_one_and_dialogues_may_part_early():
    start = "\n\nHuman: Hi\n\nAssistant: One.\n\nAssistant: Two."
    row = to_row(
        {"chosen": start + "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: Hi\n\nAssistant: Else."}
    )
    assert row.prompt == (user("Hi"),)
    assert row.responses[0] == (assistant("One.\n\nTwo."), user("x"), assistant("y"))
    assert row.responses[1] == (assistant("Else."),)


def test_scored_responses_of_any_number_with_ties():
    row = to_row({"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [1, 1, 2.5]})
    assert (len(row.responses), row.scores, row.graded) == (3, (1.0, 1.0, 2.5), True)
    assert to_row({"prompt": "Hi", "responses": ["a"]}).scores is None


@pytest.mark.parametrize("layout", ["list", "columns"])
def test_ultrafeedback(layout: str):
    completions = [{"response": "a", "overall_score": 7.5}, {"response": "b", "overall_score": 2}]
    columns = {"response": ["a", "b"], "overall_score": [7.5, 2]}
    row = to_row({"instruction": "Hi", "completions": completions if layout == "list" else columns})
    assert row.responses == ((assistant("a"),), (assistant("b"),))
    assert (row.scores, row.graded) == ((7.5, 2.0), True)


@pytest.mark.parametrize(("label", "score"), [(True, 1.0), (False, 0.0), (1, 1.0), ("false", 0.0)])
def test_unpaired(label, score):
    row = to_row({"prompt": CHAT, "completion": GOOD, "label": label})
    assert (row.responses, row.scores, row.graded) == (((assistant("Hello."),),), (score,), False)


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
MANY = {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2]}
BAD_FIELDS = [
    ({"prompt": "Hi"}, "expected the keys of one of the layouts"),
    ({}, "no keys"),
    ({"prompt": "Hi", "choosen": "a", "rejected": "b"}, "; is 'choosen' a misspelt 'chosen'?"),
    ({"prompt": "Hi", "chosen": "a"}, "a pair needs two responses, but the key 'rejected' is missing"),
    ({**PAIR, "rejected": None}, "the key 'rejected' is missing"),
    ({"prompt": "Hi", "chosen": "a", "rejectd": "b"}, "; is 'rejectd' a misspelt 'rejected'?"),
    ({**PAIR, "chosen": "  "}, "'chosen' is empty"),
    ({**PAIR, "rejected": []}, "'rejected' is empty"),
    ({**PAIR, "rejected": "a"}, "identical"),
    ({"chosen": "a b", "rejected": "a b"}, "identical"),
    ({"chosen": CHAT + GOOD, "rejected": CHAT + GOOD}, "identical"),
    ({"chosen": "abc", "rejected": "xyz"}, "have no common prefix"),
    (
        {"chosen": CHAT + GOOD, "rejected": [{"role": "user", "content": "?"}, *BAD]},
        "share no first user turn",
    ),
    ({**PAIR, "prompt": " "}, "the prompt is empty"),
    ({**PAIR, "prompt": []}, "the prompt is empty"),
    ({**PAIR, "prompt": GOOD}, "the prompt ends with an assistant turn that responses can't continue"),
    ({**PAIR, "prompt": CHAT + GOOD, "chosen": "Hello. You?"}, "'chosen' repeats the assistant turn"),
    ({"conversations": CHAT + GOOD, "completion": "a", "label": 1}, "'conversations' ends with an assistant"),
    ({**PAIR, "prompt": 3}, "expected 'prompt' to be text or a list of messages, got 3"),
    ({**PAIR, "chosen": CHAT + CHAT + GOOD}, "'chosen' begins with a user turn"),
    ({**PAIR, "chosen": GOOD + CHAT}, "'chosen' ends with a user turn"),
    ({**PAIR, "chosen": [{"role": "asistant", "content": "a"}]}, "did you mean 'assistant'"),
    ({**PAIR, "chosen": [{"content": "a"}]}, "to be a message with 'role' and 'content'"),
    ({**PAIR, "chosen": [{"role": "assistant", "content": None}]}, "content of 'chosen[0]' to be text"),
    ({**PAIR, "chosen": "\ud800"}, "valid Unicode"),
    ({**PAIR, "chosen": ["\ud800"], "rejected": ["No."]}, "'chosen' to be valid Unicode"),
    ({**PAIR, "history": [["Hi", "\ud800"]]}, "'history' to be valid Unicode"),
    ({"chosen": "Hi, a", "rejected": "Hi, \ud800"}, "'rejected' to be valid Unicode"),
    ({**PAIR, "prompt": [{**CHAT[0], "images": ["x"]}]}, "the key 'images' of 'prompt[0]' is not supported"),
    ({**PAIR, "chosen": [{**GOOD[0], "function_call": {"name": "f"}}]}, "'function_call' of 'chosen[0]'"),
    ({**PAIR, "chosen": [{**GOOD[0], "thinking": True}]}, "'chosen[0].thinking' to be text, got True"),
    ({"prompt": "Hi", "completion": "a", "label": 1, "thinking": False}, "'thinking' to be text, got False"),
    (
        {**PAIR, "tools": [{"name": "x"}], "chat_template_kwargs": {"tools": [{"name": "y"}]}},
        "keep one of them",
    ),
    ({"prompt\x1b": "Hi", "completion": "a", "label": 1}, r"is 'prompt\x1b' a misspelt 'prompt'?"),
    ({**PAIR, "tools": [{"nme": "x"}]}, "expected each of the 'tools' to be a function with a name"),
    ({**PAIR, "score_chosen": 1}, "without its counterpart"),
    ({**PAIR, "score_chosen": 1, "score_rejected": 2}, "is below"),
    ({**PAIR, "score_chosen": math.nan, "score_rejected": 2}, "'score_chosen' to be a finite number"),
    ({**MANY, "scores": [1, math.nan]}, "expected 'scores[1]' to be a finite number, got nan"),
    ({**MANY, "scores": [1, math.inf]}, "expected 'scores[1]' to be a finite number, got inf"),
    ({**MANY, "scores": [1, None]}, "expected 'scores[1]' to be a number, got null"),
    ({**MANY, "scores": [1, "x"]}, "expected 'scores[1]' to be a number, got 'x'"),
    ({**MANY, "scores": [1]}, "one score per response, got 1 for 2"),
    ({**MANY, "responses": []}, "at least one response"),
    ({**MANY, "responses": ["a", ""]}, "response 2 is empty"),
    ({**MANY, "responses": "a"}, "expected 'responses' to be a list"),
    ({"responses": ["a"]}, "the key 'prompt' is missing"),
    ({"instruction": "Hi", "completions": [{"text": "a"}]}, "the key 'response' is missing"),
    ({"completions": [{"response": "a"}]}, "'instruction' or 'prompt' is missing"),
    ({"prompt": "Hi", "completion": "a"}, "the key 'label' is missing"),
    ({"prompt": "Hi", "completion": "a", "label": "maybe"}, "'label' to be true or false"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD_FIELDS)
def test_bad_rows_say_why(fields, reason: str):
    with pytest.raises(BadRowError) as error:
        to_row(fields)
    assert reason in str(error.value)


BAD_LINES = [
    (BAD_BYTES, "not UTF-8 (byte 0xe9 at byte 32 of the line)"),
    (b'{"prompt": "Hi", ', "invalid JSON"),
    (b'["prompt"]', "expected a JSON object, got list"),
    (json.dumps({**MANY, "scores": [1, math.nan]}).encode(), "expected 'scores[1]' to be a finite number"),
    (json.dumps({**PAIR, "rejected": "a"}).encode(), "identical"),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_lines_are_errors_or_skipped(tmp_path: Path, name: str, line: bytes, reason: str):
    path = write_jsonl(tmp_path / name, [pair(1), line, pair(2)])
    with pytest.raises(DataError) as error:
        read(path, tmp_path / "cache")
    message = str(error.value)
    assert message.startswith(f"{name}, row 2: ")
    assert reason in message
    assert "data.on_bad_row: skip" in message
    store = stored(path, tmp_path / "cache", on_bad_row="skip")
    assert [row.origin for row in store.rows] == [f"{name}, row 1", f"{name}, row 3"]
    assert store.skipped == 1
    assert reason in store.problems[0]


def test_a_file_without_a_usable_row_is_an_error_even_when_skipping(tmp_path: Path):
    with pytest.raises(DataError, match=r"got no usable one; the first problem is rows.jsonl, row 1"):
        read(write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi"}]), tmp_path / "cache", on_bad_row="skip")
    with pytest.raises(DataError, match="it is empty"):
        read(write_jsonl(tmp_path / "empty.jsonl", []), tmp_path / "cache")


def test_real_hh_dialogues(shared_data: Path, tmp_path: Path):
    store = stored(str(shared_data / "hh_harmless.jsonl.gz"), tmp_path, on_bad_row="skip")
    assert (len(store.rows), store.skipped) == (1796, 4)
    assert [problem.split(":")[0].split()[-1] for problem in store.problems] == ["191", "658", "771", "1604"]
    for row in store.rows:
        assert row.prompt[-1].role == "user"
        assert all(response[-1].role == "assistant" for response in row.responses)
    with pytest.raises(DataError, match=r"hh_harmless\.jsonl\.gz, row 191: 'chosen' is empty"):
        stored(str(shared_data / "hh_harmless.jsonl.gz"), tmp_path)


def test_real_ranked_responses(shared_data: Path, tmp_path: Path):
    rows = read(str(shared_data / "alpacaeval_ranked.jsonl.gz"), tmp_path)
    assert len(rows) == 600
    assert {len(row.responses) for row in rows} == {4, 5, 6, 8}
    assert all(row.graded and len(row.scores or ()) == len(row.responses) for row in rows)


def test_a_row_keeps_the_source_that_its_columns_name(tmp_path: Path):
    single = {"prompt": "Hi", "completion": "Yo", "label": 1, "source": 3}
    rows = [pair(0) | {"source": "forum"}, pair(1), single]
    first = stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    assert [row.source for row in first.rows] == ["forum", "", "3"]
    # The same rows under other sources: read anew, and yet equal to what log-probs were computed for.
    moved = write_jsonl(tmp_path / "moved.jsonl", [row | {"source": "b"} for row in rows])
    again = stored(moved, tmp_path / "cache")
    assert [row.source for row in again.rows] == ["b", "b", "b"]
    assert again.content == first.content


def test_responses_continue_the_assistant_turn_at_the_end_of_a_prompt():
    begun = [*CHAT, {"role": "assistant", "content": "Sure, "}]
    whole = [*CHAT, {"role": "assistant", "content": "Sure, one"}]
    row = to_row({"prompt": begun, "chosen": whole, "rejected": "two"})
    assert row.prompt == (user("Hi"), assistant("Sure, "))
    assert row.responses == ((assistant("one"),), (assistant("two"),))
    assert to_row(as_fields(row)) == row
    texts = {"prompt": "\n\nHuman: Hi\n\nAssistant: Sure, ", "chosen": "one", "rejected": "two"}
    assert to_row(texts).prompt == row.prompt
    assert to_prompt({"prompt": begun}).prompt == row.prompt


def as_saved(fields, mapped=()):
    """The row of raw fields, and that of what is written for it."""
    row = convert(fields, mapped).row
    return row, to_row(json.loads(json.dumps(as_fields(row))))


CALL = {"function": {"name": "f", "arguments": json.dumps(json.dumps({"city": "P"}))}}
TURNS = [GOOD[0], CHAT[0]]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Hi", "completion": "a", "label": True, "reasoning_content": ""},
        {**PAIR, "chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        {**PAIR, "chat_template_kwargs": {"tools": [], "enable_thinking": False}},
        {"chosen": [*TURNS, *TURNS, *GOOD], "rejected": [*TURNS, *BAD]},
    ],
)
def test_a_row_that_is_written_loads_as_the_same_row(fields):
    row, again = as_saved(fields)
    assert again == row


def test_columns_of_another_layout_are_written_under_another_name():
    for fields, mapped, kept in (
        ({"question": "Hi", "chosen": "yes it is", "rejected": "no", "answers": "x"}, (), "original_answers"),
        (
            {**PAIR, "response_0": "a", "response_1": "b", "better_response_id": 0},
            ("chosen", "rejected"),
            "original_response_0",
        ),
    ):
        row, again = as_saved(fields, mapped)
        assert (again.prompt, again.responses, again.scores) == (row.prompt, row.responses, row.scores)
        assert kept in again.columns


def test_a_source_is_written_as_it_was_read(tmp_path: Path):
    rows = [pair(0) | {"source": 1}, pair(1) | {"source": 1.5}]  # a column of decimal numbers
    first, second = read(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    assert [to_row(as_fields(one)).source for one in (first, second)] == ["1", "1.5"]
    unused = convert(pair(0) | {"source": {"n": "x"}})
    assert "source" not in unused.read, "so that it is named"


def test_nulls_in_arguments_for_the_template_are_absent():
    """Parquet gives every row the keys of all rows."""
    tool = {"name": "f", "parameters": {"properties": {"city": {"type": "string"}, "day": None}}}
    given = {"tools": [tool], "chat_template_kwargs": {"enable_thinking": None, "style": "x", "tools": None}}
    found = json.loads(to_row(PAIR | given).template_args)
    assert found.pop("tools")[0]["parameters"]["properties"] == {"city": {"type": "string"}}
    assert found == {"style": "x"}


def test_keys_of_messages_that_nothing_reads_are_named():
    fields = {
        "prompt": [{**CHAT[0], "id": 3, "refusal": None}],
        "chosen": [{**GOOD[0], "weight": 0}],
        "rejected": [{"from": "gpt", "value": "No.", "markdown": True}],
    }
    assert convert(fields).left_out == ["chosen.weight", "prompt.id", "rejected.markdown"]


def test_ratings_that_cannot_be_columns_are_none_even_alone():
    rated = [{"response": text, "annotations": {"chosen": {"Rating": "4"}}} for text in ("a", "b")]
    assert not convert({"instruction": "Hi", "completions": rated}).row.columns


def test_prompts_alone_keep_their_columns_and_refuse_what_changes_them(tmp_path: Path):
    row = to_prompt({"prompt": "Hi", "id": 3, "weight": 2})
    assert (row.responses, dict(row.columns)) == ((), {"id": 3, "weight": 2.0})
    for more, reason in (
        ({"images": ["x.png"]}, "'images'"),
        ({"weight": "x"}, "'weight'"),
        ({"thinking": "x"}, "'thinking'"),
    ):
        with pytest.raises(BadRowError, match=reason):
            to_prompt({"prompt": "Hi", **more})
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": [{**CHAT[0], "id": 3}], "notes": ["a", "b"]}])
    with pytest.warns(
        UserWarning, match=r"aren't kept.* 'notes' \(a list of 2 values .*'prompt.id' \(it isn't"
    ):
        Prompts(source=path).open(tmp_path / "scratch")

"""Files with one response per row: neighbouring rows become lists, and each row is used or counted."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from pl_prefopt.data import joined_rows
from pl_prefopt.data.columns import describe_unused
from pl_prefopt.errors import DataError
from pl_prefopt.rows import Message
from tests.data.support import assistant, pair, stored, user, write_jsonl


def rated(prompt: str, response: str, helpfulness: Any, correctness: int = 1, **more: Any) -> dict[str, Any]:
    ratings = {"helpfulness": helpfulness, "correctness": correctness, "coherence": 4}
    return {"prompt": prompt, "response": response, **ratings, **more}


RATED = [
    rated("Hi", "a", 4, 0),
    rated("Hi", "b", 1, 3),
    pair(),
    rated("Hi", "c", 2),
    rated("Ho", "d", 3, system="Be brief."),
    rated("Ho", "e", 3),
]


def test_neighbouring_ratings_of_a_prompt_become_a_list(tmp_path: Path):
    store = stored(write_jsonl(tmp_path / "rows.jsonl", RATED), tmp_path / "cache")
    texts = [[response[0].content for response in row.responses] for row in store.rows]
    assert texts == [["a", "b"], [pair()["chosen"], pair()["rejected"]], ["c"], ["d"], ["e"]]
    assert [row.scores for row in store.rows] == [(4, 1), (1, 0), (2,), (3,), (3,)]
    assert store.rows[0].columns["correctness"] == (0, 3)
    assert store.rows[0].origin == "rows.jsonl, rows 1 to 2"
    assert store.rows[3].prompt == (Message("system", "Be brief."), user("Ho"))
    assert store.joined == [
        "rows.jsonl: 5 rows of HelpSteer2 ratings became 4 lists, one per prompt, scored by 'helpfulness' "
        "unless `columns` or `aspects` says otherwise"
    ]
    unused = describe_unused(store.columns, used=())
    assert unused == ["columns not used: coherence, correctness, helpfulness"]


def test_settings_choose_the_rating(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", RATED[:2])
    store = stored(path, tmp_path / "cache", columns={"scores": "correctness"})
    assert store.rows[0].scores == (0, 3)
    store = stored(path, tmp_path / "cache", aspects={"helpfulness": 1, "correctness": 2})
    assert store.rows[0].scores == (4 / 3, 7 / 3)
    rows = [{"prompt": "Hi", "response": text, "correctness": number} for number, text in enumerate("ab")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert stored(path, tmp_path / "cache", aspects={"correctness": 1}).rows[0].scores == (0, 1)
    assert stored(path, tmp_path / "cache").rows[0].scores is None


def test_ratings_that_make_no_list_are_bad_rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(joined_rows, "MOST_ROWS", 2)
    rows = [rated("Hi", "a", None), rated("Hi", "b", 1), rated("Hi", "c", 1)]
    rows += [rated("Ho", "d", 1, weight=1), rated("Ho", "e", 1, weight=2), pair()]
    store = stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache", on_bad_row="skip")
    assert ([len(row.responses) for row in store.rows], store.skipped) == ([1, 2], 3)
    for problem, reason in zip(
        sorted(store.problems),
        (
            "row 1: 'helpfulness' is null, but other responses to its prompt have it",
            "row 3: more than 2 neighbouring rows belong together",
            "rows 4 to 5: expected 'weight' to be a number, got [1, 2]",
        ),
        strict=True,
    ):
        assert problem == f"rows.jsonl, {reason}"


@pytest.mark.parametrize("correctness", [None, 2])
def test_a_row_without_the_rating_is_a_bad_row_and_leaves_its_list_whole(tmp_path: Path, correctness):
    """Whether its other ratings are there or not; and it isn't dropped where bad rows are errors."""
    unrated = {"prompt": "Hi", "response": "b", "helpfulness": None, "correctness": correctness}
    rows = [rated("Hi", "a", 4, 0), unrated, rated("Hi", "c", 1)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    store = stored(path, tmp_path / "cache", on_bad_row="skip")
    (row,) = store.rows
    assert ([response[0].content for response in row.responses], row.scores) == (["a", "c"], (4, 1))
    assert (row.columns["correctness"], store.skipped) == ((0, 1), 1)
    assert store.joined[0].startswith("rows.jsonl: 3 rows of HelpSteer2 ratings became 1 list")
    assert store.joined[0].endswith("; 1 of the rows are in none")
    with pytest.raises(DataError, match="row 2: 'helpfulness' is null"):
        stored(path, tmp_path / "other")


NULLS = (
    "images",
    "thinking",
    "ranks",
    "chosen",
    "prompt_rejected",
    "weight",
    "label",
    "context",
    "completion",
)


@pytest.mark.parametrize("name", NULLS)
def test_a_column_that_is_null_in_all_rows_of_a_list_is_absent(tmp_path: Path, name: str):
    rows = [{name: None, **row} for row in (*RATED[:2], pair(), *TREE)]
    store = stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    assert [row.scores for row in store.rows] == [(4, 1), (1, 0), (-1, 0), (0, -1)]
    assert not any(info.problem for info in store.columns.values())


def message(number: int, parent: int | None, rank: int | None = None, **more: Any) -> dict[str, Any]:
    role = more.pop("role", "assistant" if rank is not None else "prompter")
    text = {"text": f"text {number}", "role": role, "rank": rank, "lang": "en"}
    return {
        "message_id": str(number),
        "parent_id": parent and str(parent),
        "message_tree_id": "1",
        **text,
        **more,
    }


TREE = [
    message(1, None),
    message(2, 1, 1),
    message(3, 1, 0),
    message(4, 3),
    message(5, 4, 0),
    message(6, 4, 1),
    message(7, 4, 2, deleted=True),
    message(8, 1, role="assistant"),
    message(9, 2),
]


def test_ranked_replies_to_a_message_become_a_list_with_the_conversation_as_prompt(tmp_path: Path):
    other = [message(1, None, message_tree_id="2"), pair()]
    store = stored(write_jsonl(tmp_path / "rows.jsonl", [*TREE, *other]), tmp_path / "cache")
    first, second, _ = store.rows
    assert first.prompt == (user("text 1"),)
    assert first.responses == ((assistant("text 2"),), (assistant("text 3"),))
    assert (first.scores, first.graded, first.columns["message_id"]) == ((-1, 0), False, ("2", "3"))
    assert second.prompt == (user("text 1"), assistant("text 3"), user("text 4"))
    assert second.responses == ((assistant("text 5"),), (assistant("text 6"),))
    assert store.joined == [
        "rows.jsonl: 10 rows of OpenAssistant messages became 2 lists, one per message with several ranked "
        "replies; 4 of the rows are in none"
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            TREE[1:],
            "rows 1 to 2: an earlier message isn't among its neighbours; sort the rows by message_tree_id",
        ),
        ([*TREE, TREE[0]], "rows 1 to 10: two messages of a tree have the same message_id"),
        (
            [message(1, 2, 0), message(2, 1, 0), message(3, 1, 1)],
            "rows 2 to 3: an earlier message isn't among",
        ),
        (TREE[:2], "2 rows of OpenAssistant messages became 0 lists"),
    ],
)
def test_trees_that_make_no_list_are_refused(rows, reason: str, tmp_path: Path):
    with pytest.raises(DataError, match=reason):
        stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")


def test_problems_are_no_lists(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*TREE, message(1, 9, 0), message(2, 9, 1), pair()])
    joined = stored(path, tmp_path / "cache", on_bad_row="skip").joined
    assert "11 rows of OpenAssistant messages became 0 lists" in joined[0]
    assert joined[0].endswith("; 11 of the rows are in none")
    path = write_jsonl(tmp_path / "rows.jsonl", [*TREE[1:], pair()])
    joined = stored(path, tmp_path / "cache", on_bad_row="skip").joined
    assert "8 rows of OpenAssistant messages became 0 lists" in joined[0]
    assert joined[0].endswith("; 8 of the rows are in none")


SHARED = {
    "system": "Be brief.",
    "history": [["Yes?", "No."]],
    "context": "Wit counts.",
    "source": "oasst",
    "tools": [{"name": "f"}],
    "chat_template_kwargs": {"style": "dry"},
    "weight": 0.5,
}


def test_what_all_messages_of_a_tree_say_of_it_is_read(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, **SHARED} for row in TREE])
    for row in stored(path, tmp_path / "cache").rows:
        assert [turn.content for turn in row.prompt[:3]] == ["Be brief.", "Yes?", "No."]
        assert row.prompt[-1].content.endswith("\n\nWit counts.")
        assert row.template_args == '{"style": "dry", "tools": [{"name": "f"}]}'
        assert (row.source, row.columns["weight"], row.columns["context"]) == ("oasst", 0.5, "Wit counts.")


@pytest.mark.parametrize("name", SHARED)
def test_replies_that_differ_in_what_is_read_for_their_list_make_no_list(tmp_path: Path, name: str):
    rows = [{**row, name: SHARED[name]} if row["message_id"] != "3" else row for row in TREE[:3]]
    store = stored(
        write_jsonl(tmp_path / "rows.jsonl", [*rows, pair()]), tmp_path / "cache", on_bad_row="skip"
    )
    assert (len(store.rows), store.skipped) == (1, 1)
    assert f"rows 2 to 3: expected the messages of a list to have the same '{name}', got" in store.problems[0]
    assert store.joined[0].endswith(
        "became 0 lists, one per message with several ranked replies; 3 of the rows are in none"
    )


@pytest.mark.parametrize("name", SHARED)
def test_an_earlier_message_has_no_other_system_prompt_or_tools(tmp_path: Path, name: str):
    rows = [{**TREE[0], name: SHARED[name]}, *TREE[1:3]]
    store = stored(
        write_jsonl(tmp_path / "rows.jsonl", [*rows, pair()]), tmp_path / "cache", on_bad_row="skip"
    )
    assert store.skipped == (name not in ("context", "source", "weight"))
    rows = [TREE[0], *({**row, name: SHARED[name]} for row in TREE[1:3])]
    assert len(stored(write_jsonl(tmp_path / "more.jsonl", rows), tmp_path / "cache").rows) == 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("images", ["x.png"], "the key 'images' is not supported"),
        ("scores", 1, "both 'scores' and 'ranks' order the responses"),
        ("thinking", "Hm.", "'thinking' belongs to a response"),
        ("prompt", "Hi", "'prompt' is made of the messages, but they have a column 'prompt' too"),
    ],
)
def test_columns_that_a_list_of_messages_cannot_have_are_refused(
    tmp_path: Path, name: str, value, reason: str
):
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, name: value} for row in TREE])
    with pytest.raises(DataError, match=reason):
        stored(path, tmp_path / "cache")


def test_a_column_of_another_layout_in_messages_is_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, "label": True} for row in TREE])
    unused = describe_unused(stored(path, tmp_path / "cache").columns, used=())
    assert "label (its name belongs to a layout other than the row's" in unused[1]


def test_messages_in_csv(tmp_path: Path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*TREE[0], "deleted"])
        writer.writeheader()
        writer.writerows({"deleted": False, **row} for row in TREE)
    assert [row.scores for row in stored(str(path), tmp_path / "cache").rows] == [(-1, 0), (0, -1)]


def test_a_message_that_is_neither_deleted_nor_not_is_a_bad_row(tmp_path: Path):
    rows = [*TREE[:5], {**TREE[5], "deleted": "perhaps"}, message(10, 4, 3)]
    store = stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache", on_bad_row="skip")
    assert [row.scores for row in store.rows] == [(-1, 0), (0, -3)]
    assert store.problems == ["rows.jsonl, row 6: expected 'deleted' to be true or false, got 'perhaps'"]
    assert "7 rows of OpenAssistant messages became 2 lists" in store.joined[0]
    assert store.joined[0].endswith("; 1 of the rows are in none")

"""Columns that no layout reads travel with their rows, typed: from every kind of file into batches."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from pl_prefopt.data import Cache, PreferenceDataModule, PreferenceDataset, Renderer, Source
from pl_prefopt.data.columns import MOST_COLUMNS, describe_unused
from pl_prefopt.data.formats import as_fields, to_row
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.views import Mismatched
from tests.data.support import Recorder, dataset, pair, read, row, stored, trainer, write_jsonl
from tests.support import tiny_tokenizer

EXTRA: list[dict[str, Any]] = [
    {"annotator": "Ann", "worker": 2**53 + 1, "weight": 1, "easy": True, "trust": [0.25, 1.0]},
    {"annotator": "é 你\u2028\n", "worker": -7, "weight": 0.1, "easy": False, "trust": [0.1, 3.5]},
    {"annotator": "", "worker": 0, "weight": 2.5, "easy": True, "trust": [1e-300, -2.0]},
]
ROWS = [pair(number) | extra for number, extra in enumerate(EXTRA)]


def as_json_lines(path: Path) -> None:
    write_jsonl(path, ROWS)


def as_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def as_parquet(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(path)


def as_saved_dataset(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", as_json_lines),
        ("a.jsonl.gz", as_json_lines),
        ("a.json", as_json),
        ("a.parquet", as_parquet),
        ("saved", as_saved_dataset),
    ],
)
def test_columns_come_out_of_the_cache_as_they_were_in_the_file(tmp_path: Path, name, write):
    write(tmp_path / name)
    for _ in range(2):  # written, then read
        rows = read(str(tmp_path / name), tmp_path / "cache")
        for number, extra in enumerate(EXTRA):
            held = rows[number].columns
            assert held == extra | {"weight": float(extra["weight"]), "trust": tuple(extra["trust"])}
            assert [type(held[key]) for key in extra] == [str, int, float, bool, tuple]


def test_csv_cells_stay_text_but_lists(tmp_path: Path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected", "annotator", "votes"])
        writer.writerow(["Hi", "a", "b", "007", "[3, 1]"])
        writer.writerow(["Ho", "a", "b", "", "[2, 2]"])
    rows = read(str(tmp_path / "a.csv"), tmp_path / "cache")
    assert [dict(one.columns) for one in rows] == [
        {"annotator": "007", "votes": (3, 1)},
        {"annotator": None, "votes": (2, 2)},
    ]


def test_rows_with_columns_can_be_hashed_and_pickled_and_written_back(tmp_path: Path):
    for one in read(write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "cache"):
        assert pickle.loads(pickle.dumps(one)) == one
        assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
        again = to_row(json.loads(json.dumps(as_fields(one))))
        assert again.columns == one.columns
        with pytest.raises(TypeError):
            one.columns["annotator"] = "Bob"  # type: ignore[index]
    assert PreferenceRow(prompt=(), responses=(), columns={"a": 1}).columns == {"a": 1}


def test_rows_are_written_back_where_another_layout_left_nulls(tmp_path: Path):
    """A null prompt beside a dialogue, and a source that is too large to be kept as a column."""
    mixed = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "responses": None, "source": 10**400},
        {"prompt": None, "conversations": "Ho", "responses": ["a", "b"], "scores": [1, 2], "chosen": None},
    ]
    first, second = read(write_jsonl(tmp_path / "a.jsonl", mixed), tmp_path / "cache")
    for one, prompt, source in ((first, "Hi", str(10**400)), (second, "Ho", "")):
        assert not one.columns
        again = to_row(json.loads(json.dumps(as_fields(one))))
        assert dataclasses.replace(again, origin=one.origin, columns=one.columns) == one
        assert (again.prompt[0].content, again.source) == (prompt, source)


LAYOUTS = [
    {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1},
    {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2]},
    {"instruction": "Hi", "completions": [{"response": "a", "rating": 1}, {"response": "b", "rating": 2}]},
    {"prompt": "Hi", "completion": "a", "label": True},
]


@pytest.mark.parametrize("fields", LAYOUTS)
def test_what_a_layout_reads_is_no_column(fields):
    assert to_row(fields).columns == {}
    assert to_row(fields | {"annotator": 3, "source": "forum"}).columns == {"annotator": 3, "source": "forum"}


RAGGED: list[dict[str, Any]] = [
    {"prompt": "One?", "responses": ["a", "b", "c"], "votes": [5, 2, 1], "who": ["x", "y", None], "turn": 1},
    {"prompt": "Two?", "responses": ["a", "b"], "votes": [3, 4], "who": ["z", "w"], "turn": 2},
]


def test_a_batch_has_columns_by_kind_padded_per_response(tmp_path: Path):
    rows = [one | {"sure": [True] * len(one["responses"]), "note": "n", "half": 0.5} for one in RAGGED]
    batch = dataset(rows, tmp_path).batch([1, 0])
    held = batch.columns
    assert held["votes"].tolist() == [[3, 4, 0], [5, 2, 1]]
    assert held["sure"].tolist() == [[True, True, False], [True] * 3]
    assert held["turn"].tolist() == [2, 1]
    assert [held[name].dtype for name in ("votes", "sure", "turn", "half")] == [
        torch.int64,
        torch.bool,
        torch.int64,
        torch.float64,
    ]
    assert held["who"] == (("z", "w", None), ("x", "y", None))
    assert held["note"] == ("n", "n")
    moved = batch.map(lambda part: part.to("meta")).columns
    assert moved["votes"].device.type == "meta"
    assert moved["who"] == held["who"]


def test_missing_values_are_none_in_rows_and_nan_in_batches(tmp_path: Path):
    rows = [
        pair(0) | {"weight": 3, "easy": True, "who": "x", "votes": [1, None], "never": None},
        pair(1) | {"weight": None},
    ]
    data = dataset(rows, tmp_path)
    assert data.rows[1].columns == dict.fromkeys(("weight", "easy", "who", "votes", "never"))
    for numbers in ([0, 1], [0]):  # the type of a column doesn't depend on which rows share a batch
        held = data.batch(numbers).columns
        assert {held[name].dtype for name in ("weight", "easy", "votes")} == {torch.float64}
        assert held["weight"][0] == 3
        assert held["votes"].isnan().tolist()[0] == [False, True]
    held = data.batch([0, 1]).columns
    assert held["easy"].isnan().tolist() == [False, True]
    assert (held["who"], held["never"]) == (("x", None), (None, None))


def test_columns_follow_responses_to_another_prompt():
    first, second, third = (
        to_row(one) for one in (*RAGGED, RAGGED[1] | {"prompt": "Three?", "votes": [8, 9]})
    )
    shown = Mismatched()([first, second, third], 0)
    assert shown.responses == second.responses
    assert dict(shown.columns) == {"votes": (3, 4), "who": ("z", "w"), "turn": 1}
    bare = first.with_responses_of(row())
    assert dict(bare.columns) == {"votes": None, "who": None, "turn": 1}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([{"a": 1}, 2, [{}]], "nested values in rows.jsonl, row 1 and 1 more"),
        ([[1, [2]]], "nested values in rows.jsonl, row 1"),
        (["x", 7], "a number in rows.jsonl, row 2, but text in rows.jsonl, row 1"),
        ([1, True], "true or false in rows.jsonl, row 2, but a number in rows.jsonl, row 1"),
        ([1, [1, 2]], "a list in rows.jsonl, row 2, but one value in rows.jsonl, row 1"),
        ([[1, "a"]], "text in rows.jsonl, row 1, but a number there"),
        ([[1, 2], [1, 2, 3]], "a list of 3 values for 2 responses in rows.jsonl, row 2"),
        ([1, 10**400], "an integer of more than 64 bits in rows.jsonl, row 2"),
        (["\ud800"], "a text that is not valid Unicode in rows.jsonl, row 1"),
        (
            [2**53 + 1, 0.5],
            "decimal numbers together with an integer above 2^53 in rows.jsonl, row 1, which float64 can't "
            "represent",
        ),
        (
            [None, 2**53 + 1],
            "missing values together with an integer above 2^53 in rows.jsonl, row 2, which float64 can't "
            "represent",
        ),
    ],
)
def test_what_can_not_be_carried_is_named_and_refused_where_it_is_asked_for(tmp_path: Path, values, problem):
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(n) | {"odd": value} for n, value in enumerate(values)])
    store = stored(path, tmp_path / "cache")
    assert store.rows[0].columns == {}
    assert describe_unused(store.columns, used=()) == [f"columns that can't be kept: odd ({problem})"]
    with pytest.raises(DataError) as refused:
        fit(tmp_path, path, columns=["odd"])
    assert str(refused.value) == (
        "Recorder needs the column 'odd', but that of train (rows.jsonl) can't be used: "
        f"{problem}; fix the rows."
    )


def test_a_key_of_another_layout_is_named_too(tmp_path: Path):
    store = stored(
        write_jsonl(tmp_path / "rows.jsonl", [pair(0) | {"scores": 3, "tools": []}]), tmp_path / "c"
    )
    assert describe_unused(store.columns, used=()) == [
        "columns that can't be kept: "
        "scores (its name belongs to a layout other than the row's in rows.jsonl, row 1)"
    ]


def test_keys_without_number_do_not_fill_the_cache(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(n) | {f"key {n}": n} for n in range(MOST_COLUMNS + 9)])
    store = stored(path, tmp_path / "cache")
    assert len(store.rows[0].columns) == MOST_COLUMNS
    assert describe_unused(store.columns, used=())[-1] == (
        f"columns that can't be kept: all others (at most {MOST_COLUMNS} are)"
    )


# -- in a run


def fit(folder: Path, train: str | Source, *, columns: Any = (), views: Any = None, **settings: Any):
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    data = PreferenceDataModule(
        train, tokenizer=str(folder / "tokenizer"), cache_dir=str(folder / "cache"), **settings
    )
    trainer(folder, max_steps=1).fit(Recorder(columns=columns, views=views), data)
    return data


def test_a_run_names_unused_columns_once_and_batches_have_the_others(tmp_path: Path, capsys):
    rows = [one | {"source": "forum", "meta": {"a": 1}, "bad\x1bname": 1} for one in ROWS * 3]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = fit(tmp_path, path, columns=["annotator", "trust"], held_out=2, predict=path)
    printed = capsys.readouterr().out
    assert printed.count("  columns not used: bad\\x1bname, easy, worker\n") == 1
    assert printed.count("meta (nested values in rows.jsonl, row 1 and 8 more)") == 1
    assert list(data.datasets["train"].batch([0]).columns) == ["annotator", "weight", "trust"]
    assert set(data.datasets["train"].rows[0].columns) == {*EXTRA[0], "source", "bad\x1bname"}


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        (
            {"rater": "x", "other": 1},
            ContractError,
            "Recorder needs the column 'annotator', but train (rows.jsonl) has no such column; its columns "
            "are prompt, chosen, rejected, rater, other: add it, or map another column to it with "
            "data.columns.",
        ),
        (
            {"annotator": None},
            DataError,
            "Recorder needs the column 'annotator' in each row, but rows.jsonl, row 3 has no value: add one, "
            "or remove the row.",
        ),
    ],
)
def test_a_column_that_is_missing_is_refused_before_anything_is_tokenised(
    tmp_path: Path, monkeypatch, change, kind, sentence
):
    monkeypatch.setattr(Renderer, "render", None)
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0)])
    with pytest.raises(ContractError, match="Recorder needs the column 'prompt', but that name belongs to a"):
        fit(tmp_path, path, columns=["prompt"])
    first = change if "rater" in change else {"annotator": "x"}
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0) | first, pair(1) | first, pair(2) | change])
    with pytest.raises(kind) as refused:
        fit(tmp_path, path, columns=["annotator"])
    assert str(refused.value) == sentence


class Curriculum(PreferenceDataModule):
    """Trains on easy rows first."""

    sampler_columns = ("difficulty",)

    def train_dataloader(self):
        difficulty = self.datasets["train"].column("difficulty")
        order = sorted(range(len(difficulty)), key=lambda number: difficulty[number])
        return self._loader(self.datasets["train"], [[number] for number in order])


def test_a_sampler_of_ones_own_reads_a_column_that_every_row_must_have(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    settings = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(n) | {"difficulty": (3 * n) % 5} for n in range(5)])
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, Curriculum(path, **settings))
    assert [numbers for _, numbers in module.seen] == [[0], [2], [4], [1], [3]]
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0)])
    with pytest.raises(ContractError, match="Curriculum needs the column 'difficulty', but train"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), Curriculum(path, **settings))


def test_splits_agree_on_a_columns_type(tmp_path: Path):
    val = write_jsonl(tmp_path / "val.jsonl", [pair(1) | {"annotator": "x"}])
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0) | {"annotator": 1}])
    with pytest.raises(DataError, match="holds a number in the train rows, but text in the val rows"):
        fit(tmp_path, path, val=val, columns=["annotator"])
    fit(tmp_path, path, val=val)


def test_only_columns_that_are_read_are_a_part_of_what_the_data_is(tmp_path: Path):
    def made(rows, columns):
        store = stored(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
        renderer = Renderer(tiny_tokenizer())
        return PreferenceDataset.tokenised(store, renderer, cache=Cache(tmp_path / "cache"), columns=columns)

    changed = [ROWS[0] | {"annotator": "Bob"}, *ROWS[1:]]
    bare, unread, other = (made(rows, ()) for rows in ([pair(n) for n in range(3)], ROWS, changed))
    read_, read_other = (made(rows, ["annotator"]) for rows in (ROWS, changed))
    assert bare.fingerprint == unread.fingerprint == other.fingerprint
    assert len({unread.fingerprint, read_.fingerprint, read_other.fingerprint}) == 3
    # What a reference gives depends on the tokens alone.
    assert read_.tokens_fingerprint == bare.tokens_fingerprint


class Annotated(Mismatched):
    """A view that reads a column."""

    fingerprint = "annotated"

    def over(self, rows):
        return lambda index: rows[index].with_responses_of(
            row("", str(rows[index].columns["annotator"]), "b")
        )


def test_a_view_that_reads_a_column_is_tokenised_anew_where_it_changes(tmp_path: Path):
    shown = []
    for name in ("Ann", "Bob"):
        rows = [pair(n) | {"annotator": name} for n in range(2)]
        data = dataset(rows, tmp_path, views={"annotated": Annotated()})
        tree = data.batch([0], views=["annotated"]).trees["annotated"]
        shown.append(data.renderer.decode(tree.response_ids[0, 0][tree.response_mask[0, 0]].tolist()))
    assert shown == ["Ann", "Bob"]


# -- a file's own names

THEIRS = [
    {"question": "Hi", "good": "a", "bad": "b", "rater": "x"},
    {"question": "Ho", "good": "a", "bad": "b"},
]
NAMES = {"prompt": "question", "chosen": "good", "rejected": "bad", "annotator": "rater"}


def test_a_files_names_are_mapped_to_ours(tmp_path: Path):
    path, cache = write_jsonl(tmp_path / "rows.jsonl", THEIRS), tmp_path / "cache"
    first, second = stored(path, cache, columns=NAMES).rows
    assert (first.prompt[0].content, first.responses[0][0].content) == ("Hi", "a")
    assert [dict(one.columns) for one in (first, second)] == [{"annotator": "x"}, {"annotator": None}]
    # Under another mapping the cache holds other rows.
    swapped = stored(path, cache, columns=NAMES | {"chosen": "bad", "rejected": "good"}).rows[0]
    assert swapped.responses[0][0].content == "b"
    other = {"who" if ours == "annotator" else ours: theirs for ours, theirs in NAMES.items()}
    renamed = stored(path, cache, columns=other).rows[0]
    assert dict(renamed.columns) == {"who": "x"}


def test_a_pair_of_names_may_change_places(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0)])
    swapped = stored(path, tmp_path / "cache", columns={"chosen": "rejected", "rejected": "chosen"}).rows[0]
    assert swapped.responses[0][0].content == "Bad 0"


def test_a_source_renames_before_the_mapping(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"q": "Hi", "chosen": "a", "rejected": "b"}])
    source = Source(path=path, columns={"q": "question"})
    assert (
        stored(source, tmp_path / "cache", columns={"prompt": "question"}).rows[0].prompt[0].content == "Hi"
    )


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            NAMES | {"annotator": "ratr"},
            "data.columns maps 'annotator' to 'ratr', but rows.jsonl has no such column; its columns are "
            "question, good, bad, rater; did you mean 'rater'?",
        ),
        (
            {"good": "question"},
            "data.columns maps 'good' to 'question', but rows.jsonl, row 1 already has a column 'good': "
            "rename one of them in the data, or remove 'good' from data.columns.",
        ),
    ],
)
def test_names_that_can_not_be_mapped_are_refused(tmp_path: Path, columns, sentence):
    path = write_jsonl(tmp_path / "rows.jsonl", THEIRS)
    for on_bad_row in ("error", "skip"):
        with pytest.raises(ConfigError) as refused:
            stored(path, tmp_path / "cache", columns=columns, on_bad_row=on_bad_row)
        assert str(refused.value) == sentence


def test_two_names_for_one_column_are_refused():
    with pytest.raises(ConfigError) as refused:
        PreferenceDataModule("rows.jsonl", columns={"chosen": "good", "annotator": "good"})
    assert str(refused.value) == (
        "data.columns maps both 'chosen' and 'annotator' to the column 'good': remove one of them."
    )


def test_a_source_that_renames_onto_a_column_is_refused(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0) | {"question": "Hi"}])
    with pytest.raises(
        ConfigError, match=r"the setting columns of rows\.jsonl maps 'prompt' to 'question', but"
    ):
        read(Source(path=path, columns={"question": "prompt"}), tmp_path / "cache")


def test_a_float_is_kept_to_its_last_bit(tmp_path: Path):
    values = [0.1, 1 / 3, 5e-324, -0.0, math.inf, math.nan]
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(n) | {"x": value} for n, value in enumerate(values)])
    held = [one.columns["x"] for one in read(path, tmp_path / "cache")]
    assert [repr(value) for value in held] == [repr(value) for value in values]

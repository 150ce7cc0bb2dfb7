"""Files of every kind, folders and names give the same rows; what cannot be read says so."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pl_prefopt.data import Source, file_readers, sources
from pl_prefopt.errors import ConfigError, DataError
from tests.data.support import assistant, pair, read, stored, write_jsonl

PAIRS = [pair(i) for i in range(3)]


def as_json(path: Path) -> None:
    path.write_text(json.dumps(PAIRS))


def as_json_lines(path: Path) -> None:
    write_jsonl(path, PAIRS)


def as_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, PAIRS[0])
        writer.writeheader()
        writer.writerows(PAIRS)


def as_parquet(path: Path) -> None:
    datasets.Dataset.from_list(PAIRS).to_parquet(path)


def as_saved_dataset(path: Path) -> None:
    datasets.Dataset.from_list(PAIRS).save_to_disk(path)


def as_saved_splits(path: Path) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_list(PAIRS)).save_to_disk(path)


FILES = [("a.jsonl", as_json_lines), ("a.json", as_json), ("b.json", as_json_lines), ("a.csv", as_csv)]
FOLDERS = [("saved", as_saved_dataset), ("splits", as_saved_splits)]


@pytest.mark.parametrize(("name", "write"), [*FILES, ("a.parquet", as_parquet), *FOLDERS])
def test_every_kind_of_source(tmp_path: Path, name: str, write):
    write(tmp_path / name)
    rows = read(str(tmp_path / name), tmp_path / "cache")
    assert [row.responses[0][0].content for row in rows] == [p["chosen"] for p in PAIRS]
    assert [row.origin for row in rows] == [f"{name}, row {i}" for i in (1, 2, 3)]


@pytest.mark.parametrize(("name", "write"), [*FILES, ("a.parquet", as_parquet)])
def test_every_kind_of_file_gzipped(tmp_path: Path, name: str, write):
    plain = tmp_path / name
    write(plain)
    content = plain.read_bytes()
    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    rows = read(str(tmp_path / f"{name}.gz"), tmp_path / "cache")
    assert [row.prompt[0].content for row in rows] == [p["prompt"] for p in PAIRS]


def test_csv_cells_stay_text_and_may_hold_lists(tmp_path: Path):
    path = tmp_path / "rows.csv"
    messages = json.dumps([{"role": "user", "content": "Sum?"}]).replace('"', '""')
    path.write_text(f'prompt,completion,label\n"{messages}",007,true\nNext?,NA,false\n')
    rows = read(str(path), tmp_path / "cache")
    assert [row.responses[0][0] for row in rows] == [assistant("007"), assistant("NA")]
    assert [row.scores for row in rows] == [(1.0,), (0.0,)]
    assert rows[0].prompt[0].content == "Sum?"
    path.write_text('prompt,responses,scores\nHi,"[""a"", ""b""]","[1, 2]"\n')
    assert read(str(path), tmp_path / "cache")[0].scores == (1.0, 2.0)


def test_columns_are_renamed(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Hi", "chosen": "a", "rejected": "b"}])
    source = Source(path=path, columns={"question": "prompt"})
    assert read(source, tmp_path / "cache")[0].prompt[0].content == "Hi"


def test_a_column_to_rename_must_be_in_some_row(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [PAIRS[0], PAIRS[1] | {"question": None}])
    assert len(read(Source(path=path, columns={"question": "note"}), tmp_path / "cache")) == 2
    source = Source(path=path, columns={"question": "note", "choosen": "chosen"})
    with pytest.raises(ConfigError) as caught:
        read(source, tmp_path / "cache")
    assert str(caught.value) == (
        "the setting columns of rows.jsonl maps 'chosen' to 'choosen', but rows.jsonl has no such column; "
        "its columns are prompt, chosen, rejected, question; did you mean 'chosen'?"
    )


def test_at_most_max_rows(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(0), pair(1), b"broken"])
    assert len(read(path, tmp_path / "cache", max_rows=2)) == 2


@pytest.mark.parametrize("target", ["loop.jsonl", "gone.jsonl"])
def test_a_link_that_leads_nowhere_is_called_one(tmp_path: Path, target):
    link = tmp_path / "loop.jsonl"
    link.symlink_to(target)
    with pytest.raises(DataError, match=f"a broken link to {target}"):
        read(Source(path=str(link)), tmp_path / "cache")


def test_a_missing_file_names_its_neighbour(tmp_path: Path):
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"no such file.*did you mean 'pairs\.jsonl'"):
        read(str(tmp_path / "pair.jsonl"), tmp_path / "cache")
    with pytest.raises(DataError, match="there is no folder"):
        read(str(tmp_path / "nowhere" / "pair.jsonl"), tmp_path / "cache")


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=r"\.jsonl, \.json, \.csv, \.parquet"):
        read(str(tmp_path / "rows.txt"), tmp_path / "cache")


def test_an_unknown_split_names_the_known_ones(tmp_path: Path):
    as_saved_splits(tmp_path / "splits")
    with pytest.raises(DataError, match=r"expected a split 'trian'.*got train; .*did you mean 'train'"):
        read(Source(path=str(tmp_path / "splits"), split="trian"), tmp_path / "cache")


def test_an_unknown_name_is_looked_for_on_the_hub(tmp_path: Path):
    with pytest.raises(DataError, match="'nobody/nothing-here' is not a local file or folder"):
        read("nobody/nothing-here", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'[{"prompt": "Hi"', r"a\.json as json"),
        ("a.csv", b'prompt,chosen,rejected\nHi,"a,b\n', r"a\.csv as csv .*unexpected end"),
        ("a.csv", b"prompt,chosen,rejected,chosen\nHi,a,b,c\n", r"a\.csv: the header has chosen twice"),
        ("a.csv", b"\xff,chosen\nHi,b\n", r"a\.csv, line 1: not UTF-8"),
        ("a.json", b'[\n{"prompt": "caf\xe9"}]', r"a\.json, line 2: not UTF-8"),
        ("a.json", json.dumps(PAIRS).replace("},", "}").encode(), r"a\.json as json \(expected ','"),
        ("a.json", b"[", r"a\.json as json"),
        ("a.parquet", b"nothing of the kind", r"a\.parquet as parquet"),
        (
            "a.jsonl.gz",
            gzip.compress(json.dumps([*PAIRS]).encode() * 50, mtime=0)[:-20],
            "the gzip stream is truncated or corrupt",
        ),
        ("a.jsonl.gz", b"{}", "the gzip stream is truncated or corrupt"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(str(tmp_path / name), tmp_path / "cache")


def test_a_parquet_row_that_is_no_text_costs_that_row_only(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(PAIRS), path, compression="none", use_dictionary=False)
    text = PAIRS[1]["chosen"].encode()
    path.write_bytes(path.read_bytes().replace(text, b"\x80" + text[1:]))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: not UTF-8 .*0x80"):
        read(str(path), tmp_path / "cache")
    store = stored(str(path), tmp_path / "cache", on_bad_row="skip")
    assert [row.origin for row in store.rows] == ["a.parquet, row 1", "a.parquet, row 3"]
    assert store.skipped == 1


def test_a_csv_row_of_another_width_is_bad_and_shifts_nothing(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,chosen,rejected\nHi,a,b\nHo,a,b,c\n\nHe,a\ncaf\xe9,a,b\nLast,a,b\n")
    store = stored(str(path), tmp_path / "cache", on_bad_row="skip")
    assert [row.prompt[0].content for row in store.rows] == ["Hi", "Last"]
    assert [problem.split(";")[0] for problem in store.problems] == [
        "a.csv, row 2: 4 cells for 3 columns",
        "a.csv, row 3: 2 cells for 3 columns",
        "a.csv, row 4: not UTF-8 (line 6)",
    ]


def problems_of(path: Path, cache: Path) -> list[str]:
    return stored(str(path), cache, on_bad_row="skip").problems


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_occurs_twice_is_a_bad_row(tmp_path: Path, name: str):
    rows = [json.dumps(PAIRS[0]), '{"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen": "c"}']
    (tmp_path / name).write_text("\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]")
    assert problems_of(tmp_path / name, tmp_path / "cache") == [
        f"{name}, row 2: invalid JSON (the key 'chosen' occurs twice)"
    ]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet"])
def test_texts_that_look_like_something_else_stay_texts(tmp_path: Path, name: str):
    texts = ["2024-01-05", "2024-01-05T00:00:00Z"]
    rows = [{"prompt": text, "chosen": "1e5", "rejected": "True"} for text in texts]
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(rows))
    elif name == "a.csv":
        path.write_text("prompt,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert [row.prompt[0].content for row in read(str(path), tmp_path / "cache")] == texts


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.parquet", "folder"])
def test_a_file_rewritten_with_its_old_time_stamp_gives_the_new_rows(tmp_path: Path, name: str):
    path = tmp_path / name
    file = path / "train.csv" if name == "folder" else path
    file.parent.mkdir(exist_ok=True)
    write = {".csv": as_csv, ".json": as_json, ".parquet": as_parquet}[file.suffix]
    for marker in ("Good", "Poor"):
        write(file)
        file.write_bytes(file.read_bytes().replace(b"Good", marker.encode()))
        os.utime(file, (1e9, 1e9))
        rows = read(str(path), tmp_path / "cache")
        assert rows[0].responses[0][0].content.startswith(marker)


NAMES = ["rows[1].parquet", "r::x.parquet", "a*.parquet", os.fsdecode(b"caf\xe9.parquet")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_name_is_no_pattern(tmp_path: Path, name: str):
    as_parquet(tmp_path / "good.parquet")
    (tmp_path / "good.parquet").rename(tmp_path / name)
    pq.write_table(pa.Table.from_pylist([pair(9)]), tmp_path / "rows1.parquet")
    rows = read(str(tmp_path / name), tmp_path / "cache")
    assert [row.prompt[0].content for row in rows] == [p["prompt"] for p in PAIRS]
    assert rows[0].origin.isprintable()


def test_a_folder_gives_the_files_of_a_split_whatever_their_kind_and_layout(tmp_path: Path):
    folder = tmp_path / "files"
    (folder / "data").mkdir(parents=True)
    as_parquet(folder / "data" / "train-00000-of-00001.parquet")
    write_jsonl(folder / "train.jsonl", [{"prompt": "Hi", "completion": "a", "label": 1}])
    write_jsonl(folder / "test.jsonl", [pair(7)])
    rows = read(str(folder), tmp_path / "cache")
    assert [len(row.responses) for row in rows] == [2, 2, 2, 1]
    assert rows[-1].origin == "files/train.jsonl, row 1"
    (test,) = read(Source(path=str(folder), split="test"), tmp_path / "cache")
    assert test.prompt[0].content == "Question 7?"
    with pytest.raises(DataError, match=r"expected a split 'validation' in .*, got test, train"):
        read(Source(path=str(folder), split="validation"), tmp_path / "cache")
    write_jsonl(folder / "more.jsonl", [pair(8)])
    with pytest.raises(DataError, match=r"name its split .* but more\.jsonl does not"):
        read(str(folder), tmp_path / "cache")


def test_a_file_without_rows_is_empty(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(PAIRS).slice(0, 0), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n")
    (tmp_path / "a.json").write_text("[]")
    for name in ("a.csv", "a.json", "a.parquet"):
        with pytest.raises(DataError, match="it is empty"):
            read(str(tmp_path / name), tmp_path / "cache")


def test_a_row_has_a_bound(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(file_readers, "LARGEST_ROW", 200)
    monkeypatch.setattr(file_readers, "_FIRST_READ", 50)
    long = pair(1) | {"chosen": "x" * 300}
    path = write_jsonl(tmp_path / "a.jsonl.gz", [PAIRS[0], long, PAIRS[2]])
    store = stored(path, tmp_path / "cache", on_bad_row="skip")
    assert [row.origin for row in store.rows] == ["a.jsonl.gz, row 1", "a.jsonl.gz, row 3"]
    assert "row 2: a line longer than" in store.problems[0]
    for name, content in (("a.json", json.dumps([long])), ("a.csv", f"prompt,chosen\n{'x' * 300},a\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=r"an item is longer|field larger than field limit"):
            read(str(tmp_path / name), tmp_path / "cache")
    # Items that span several reads are whole.
    (tmp_path / "b.json").write_text(json.dumps(PAIRS, indent=9))
    assert len(read(str(tmp_path / "b.json"), tmp_path / "cache")) == 3


DEEP = "[" * 10**5
BAD_VALUES = [
    (PAIRS[0] | {"source": "\ud800"}, "'source' to be valid Unicode"),
    ({"prompt": "Hi", "completions": {"response": ["a", "b"], "rating": [1]}}, "to have one length"),
    ({"prompt": "Hi", "responses": DEEP}, "expected 'responses' to be a list"),
    ({"x" * 10**6: 1}, "expected the keys"),
    ({"\x1b[31m": 1}, "\\x1b[31m"),
    ({"prompt": "Hi", "chosen": [{"role": "x" * 10**6, "content": "a"}], "rejected": "b"}, "the role of"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_one_bad_row_never_ends_a_run_that_skips_bad_rows(tmp_path: Path, bad, reason: str):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIRS[0], bad, DEEP.encode(), PAIRS[1]])
    store = stored(path, tmp_path / "cache", on_bad_row="skip")
    assert (len(store.rows), store.skipped) == (2, 2)
    assert reason in store.problems[0]
    assert "nested too deeply" in store.problems[1]
    assert all(len(problem) < 600 and problem.isprintable() for problem in store.problems)


def test_a_nested_cell_is_a_bad_row(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,chosen,rejected\nHi,a,{DEEP[:50000]}{']' * 50000}\nHi,a,b\n")
    assert problems_of(path, tmp_path / "cache") == [
        "a.csv, row 1: invalid JSON in a cell (nested too deeply)"
    ]


@pytest.mark.parametrize("name", ["a.json", "a.parquet"])
def test_a_null_is_an_absent_column(tmp_path: Path, name: str):
    rows = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 2.0]},
        {"prompt": "Hi", "completion": "a", "label": True},
    ]
    mixed = [dict.fromkeys(key for one in rows for key in one) | row for row in rows]
    if name == "a.json":
        (tmp_path / name).write_text(json.dumps(mixed))
    else:
        pq.write_table(pa.Table.from_pylist(mixed), tmp_path / name)
    assert [row.scores for row in read(str(tmp_path / name), tmp_path / "cache")] == [(1, 0), (1, 2), (1,)]


def as_pandas(rows: list) -> object:
    return pytest.importorskip("pandas").DataFrame(rows)


def as_polars(rows: list) -> object:
    return pytest.importorskip("polars").DataFrame(rows)


@pytest.mark.parametrize("wrap", [list, as_pandas, as_polars, datasets.Dataset.from_list])
def test_rows_in_memory(tmp_path: Path, wrap):
    several = {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2]}
    rows = [dict.fromkeys((*PAIRS[0], *several)) | one for one in (PAIRS[0], several)]
    expected = read(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    found = read(Source.of(wrap(rows)), tmp_path / "cache")
    assert [(row.prompt, row.responses, row.scores) for row in found] == [
        (row.prompt, row.responses, row.scores) for row in expected
    ]
    assert found[1].origin == "rows in memory, row 2"
    changed = read(Source.of(wrap([rows[1]])), tmp_path / "cache")
    assert [row.scores for row in changed] == [(1, 2)]


def with_moments(folder: Path) -> object:
    moments = pa.array([0, 2**62], pa.int64()).view(pa.timestamp("us"))
    return datasets.Dataset(pa.Table.from_pylist(PAIRS[:2]).append_column("at", moments))


def with_moments_in_polars(folder: Path) -> object:
    return pytest.importorskip("polars").from_arrow(with_moments(folder).data.table)


def with_moments_saved(folder: Path) -> object:
    with_moments(folder).save_to_disk(folder / "saved")
    return str(folder / "saved")


def with_bytes(folder: Path) -> object:
    texts = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    return datasets.Dataset(pa.Table.from_pylist(PAIRS[:2]).set_column(1, "chosen", texts))


def with_lists(folder: Path) -> object:
    value: list = []
    for _ in range(2000):
        value = [value]
    return [PAIRS[0], PAIRS[1] | {"more": value}]


def with_integers(folder: Path) -> object:
    return [PAIRS[0], PAIRS[1] | {"more": 10**5000}]


def with_keys(folder: Path) -> object:
    return [PAIRS[0], {**PAIRS[1], 1: "a", "1": "b"}]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_moments, "a value that can't be read (date value out of range)"),
        (with_moments_in_polars, "a value that can't be read (year 148108 is out of range)"),
        (with_moments_saved, "a value that can't be read (date value out of range)"),
        (with_bytes, "not UTF-8 ('utf-8' codec can't decode byte 0xff"),
        (with_lists, "nested too deeply"),
        (with_integers, "a value that can't be read (an integer of more than 4300 digits)"),
        (with_keys, "a value that can't be read (a key occurs twice"),
    ],
)
def test_a_row_of_a_table_that_cannot_be_read_costs_that_row_only(tmp_path: Path, make, reason: str):
    store = stored(Source.of(make(tmp_path)), tmp_path / "cache", on_bad_row="skip")
    assert (len(store.rows), store.skipped) == (1, 1)
    assert f", row 2: {reason}" in store.problems[0]


def test_a_frame_with_a_column_twice_is_refused():
    frame = pytest.importorskip("pandas").DataFrame([["a", "b", "c"]], columns=["chosen", "chosen", "1"])
    with pytest.raises(DataError, match="the frame has the column chosen twice; rename one of them"):
        Source.of(frame)
    with pytest.raises(DataError, match="the frame has the column 1 twice"):
        Source.of(frame.set_axis(["chosen", 1, "1"], axis=1))


@pytest.mark.parametrize("saved", [False, True])
def test_a_dataset_that_gives_tensors_has_the_same_rows(tmp_path: Path, saved: bool):
    rows = [{"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2]}]
    given = datasets.Dataset.from_list(rows).with_format("torch")
    if saved:
        given.save_to_disk(tmp_path / "saved")
    (row,) = read(Source.of(str(tmp_path / "saved") if saved else given), tmp_path / "cache")
    assert row.scores == (1, 2)


@pytest.mark.parametrize(
    "source",
    [7, ["a.jsonl", "b.jsonl"], [{"a": 1}, "b"], datasets.Dataset.from_list(PAIRS).to_iterable_dataset()],
)
def test_anything_else_is_no_source(source):
    with pytest.raises(ConfigError, match=r"got (a )?(int|list|IterableDataset)"):
        Source.of(source)


def test_parquet_is_read_row_group_by_row_group(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(file_readers, "ROWS_PER_BLOCK", 10)
    path = tmp_path / "pairs.parquet"
    rows = [pair(number) for number in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, write_page_checksum=True)
    last = pq.ParquetFile(path).metadata.row_group(3).column(0)
    content = bytearray(path.read_bytes())
    begin = last.dictionary_page_offset or last.data_page_offset
    content[begin : begin + last.total_compressed_size] = bytes(last.total_compressed_size)
    path.write_bytes(content)
    assert len(read(str(path), tmp_path / "cache", max_rows=30)) == 30
    with pytest.raises(DataError, match=r"could not read .*pairs.parquet as parquet"):
        read(str(path), tmp_path / "cache")


def test_a_stream_is_read_as_far_as_needed_and_not_copied(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_BLOCK", 5)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "hub"
    folder.mkdir()
    for shard in range(3):
        records = [pair(10 * shard + number) for number in range(10)]
        if shard == 0:
            records[1]["chosen"] = records[1]["rejected"]
        datasets.Dataset.from_list(records).to_parquet(folder / f"train-{shard}.parquet")
    (folder / "train-2.parquet").write_bytes(b"not Parquet")
    monkeypatch.setattr(sources, "_find", lambda source, scratch: sources._stream_hub(source))  # no hub here
    streamed = Source(path=str(folder), streaming=True)
    rows = read(streamed, tmp_path / "cache", max_rows=15, on_bad_row="skip")
    assert [row.prompt[0].content for row in rows] == [f"Question {n}?" for n in range(16) if n != 1]
    assert rows[-1].origin == "hub, row 16"
    assert not list((tmp_path / "datasets").rglob("*.arrow"))
    with pytest.raises(DataError, match="loading it from the hub failed"):
        read(streamed, tmp_path / "cache", on_bad_row="skip")

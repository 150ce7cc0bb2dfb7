"""Files of every kind, folders and names give the same rows; what cannot be read says so."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pl_prefopt.data import Source
from pl_prefopt.errors import DataError
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


def as_folder_of_files(path: Path) -> None:
    path.mkdir()
    write_jsonl(path / "train.jsonl", PAIRS)


FILES = [("a.jsonl", as_json_lines), ("a.json", as_json), ("b.json", as_json_lines), ("a.csv", as_csv)]
FOLDERS = [("saved", as_saved_dataset), ("splits", as_saved_splits), ("files", as_folder_of_files)]


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
        ("a.csv", b"prompt,chosen,rejected\nHi,caf\xe9,b\n", r"a\.csv, line 2: not UTF-8"),
        ("a.csv", b"\xff,chosen\nHi,b\n", r"a\.csv, line 1: not UTF-8"),
        ("a.json", b'[\n{"prompt": "caf\xe9"}]', r"a\.json, line 2: not UTF-8"),
        ("a.csv", b"prompt,chosen\nHi,b\nHi,b,c,d\n", r"a\.csv as csv .*line 3"),
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

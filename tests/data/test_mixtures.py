"""Several sources of one split: names, columns, rows per epoch, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from pl_prefopt.data import PreferenceDataModule, Source, Sources
from pl_prefopt.data.mixtures import Mixture, join, mixture_of
from pl_prefopt.data.sampler import LengthGroupedSampler
from pl_prefopt.data.transforms import AllPairs, RemoveDuplicates
from pl_prefopt.errors import ConfigError, DataError
from tests.data.support import pair, stored, write_jsonl
from tests.support import tiny_tokenizer


def mixture(*sizes_and_settings: tuple[int, dict]) -> Mixture:
    parts = np.repeat(np.arange(len(sizes_and_settings)), [size for size, _ in sizes_and_settings])
    sources = [Source(path=f"{i}", **settings) for i, (_, settings) in enumerate(sizes_and_settings)]
    found = mixture_of(parts, Sources("train", sources), seed=3)
    assert found is not None
    return found


def test_each_row_occurs_equally_often_after_any_number_of_epochs():
    found = mixture((7, {"passes": 0.5}), (5, {"rows_per_epoch": 13}), (4, {}), (3, {"passes": 2}))
    assert found.quotas == [4, 13, 4, 6]
    seen = Counter()
    for epoch in range(9):
        rows = found.rows(epoch)
        assert len(rows) == len(found) == 27
        seen.update(rows.tolist())
        for part, quota in ((range(7), 4), (range(7, 12), 13), (range(12, 16), 4), (range(16, 19), 6)):
            times = [seen[row] for row in part]
            assert sum(times) == quota * (epoch + 1)
            assert max(times) - min(times) <= 1
    assert found.rows(4).tolist() == found.rows(4).tolist() != found.rows(5).tolist()
    most = Counter(found.most().tolist())
    for epoch in range(50):
        assert Counter(found.rows(epoch).tolist()) <= most


def test_half_of_the_rows_and_then_the_others():
    found = mixture((8, {"passes": 0.5}))
    assert sorted([*found.rows(0), *found.rows(1)]) == list(range(8))


def test_batches_of_an_epoch_have_its_rows_on_all_ranks():
    found = mixture((10, {"passes": 1.5}), (6, {}))
    batches = [
        LengthGroupedSampler(np.arange(16), 2, shuffle=True, seed=3, mixture=found, num_replicas=2, rank=rank)
        for rank in range(2)
    ]
    for epoch in range(3):
        rows = []
        for sampler in batches:
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == len(sampler) == 6  # 21 rows, 4 per step
            rows += [row for batch in sampler for row in batch if row >= 0]
        assert sorted(rows) == found.rows(epoch).tolist()


def test_without_weights_the_order_is_that_of_one_source():
    parts = np.repeat([0, 1], 5)
    assert mixture_of(parts, Sources("train", ["a", Source(path="b", passes=1)]), seed=0) is None


@pytest.mark.parametrize(
    ("split", "given", "said"),
    [
        ("train", ["a.jsonl", "a.jsonl"], "names a.jsonl twice; set its `passes: 2`"),
        ("val", {"x": "a.jsonl", "y": "a.jsonl"}, "data.val names a.jsonl twice$"),
        ("train", {"split": "train"}, "has 'split' without `path`"),
        ("train", {"path": "a.jsonl", "passess": 2}, "no setting 'passess'.*'passes'"),
        ("train", {"x": {"split": "train"}}, "a source lacks its `path`"),
        ("val", {"a b": "a.jsonl"}, "letters, digits, _ and -.*'a b'"),
        ("val", {1: "a.jsonl"}, "letters, digits, _ and -.*'1'"),
        ("val", {}, "an empty mapping"),
        ("val", {"x": {"path": "a.jsonl", "passes": 2}}, "`passes` belongs to training rows"),
        ("train", Source(path="a.jsonl", passes=2, rows_per_epoch=3), "keep one of them"),
        ("train", Source(path="a.jsonl", passes=-1), "above 0, got -1"),
        ("train", DatasetDict(train=Dataset.from_list([pair()])), "got a DatasetDict of train"),
    ],
)
def test_what_is_ambiguous_is_refused(split, given, said):
    with pytest.raises(ConfigError, match=said):
        Sources(split, given)


def test_a_token_limit_needs_the_same_rows_in_each_epoch(make):
    with pytest.raises(ConfigError, match=r"expected each epoch to have the same rows"):
        make(train={"a": {"path": make.a, "passes": 0.5}}, max_tokens_per_batch=50).setup("fit")
    data = make(train={"a": {"path": make.a, "passes": 2}, "b": make.b}, max_tokens_per_batch=50)
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert sorted(row for batch in sampler for row in batch) == sorted(
            [*range(6), *range(6), *range(6, 10)]
        )
        assert len(list(sampler)) == len(sampler)


@pytest.fixture
def make(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def make_module(**options) -> PreferenceDataModule:
        return PreferenceDataModule(
            tokenizer=str(tmp_path / "tokenizer"), cache_dir=str(tmp_path / "cache"), **options
        )

    make_module.a = write_jsonl(tmp_path / "a.jsonl", [pair(i) for i in range(6)])
    make_module.b = write_jsonl(tmp_path / "b.jsonl", [pair(i) | {"source": "own"} for i in range(4, 8)])
    return make_module


def test_held_out_prompts_are_on_one_side_across_sources(make):
    data = make(train={"a": make.a, "b": make.b}, held_out=4)
    data.setup("fit")
    train, val = data.datasets["train"], data.datasets["val"]
    assert len(train) + len(val) == 10
    assert not {row.prompt for row in train.rows} & {row.prompt for row in val.rows}
    assert val.sets == ("a", "b")


def test_rows_name_their_source_and_their_set(make, capsys):
    data = make(train=[make.a, make.b], val={"a": make.a, "b": make.b})
    data.setup("fit")
    val = data.datasets["val"]
    assert val.batch([0, 9]).sets == ("a", "b")
    assert (val.rows[0].source, val.rows[9].source) == ("a", "own")
    assert data.datasets["train"].batch([0, 9]).sets == ()
    assert "  b.jsonl: 4 rows, 4 per epoch" in capsys.readouterr().out


def test_a_pattern_is_all_files_that_match_unless_it_is_a_file(tmp_path: Path):
    for name, number in (("r1.jsonl", 1), ("r2.jsonl", 2)):
        write_jsonl(tmp_path / name, [pair(number)])
    pattern = str(tmp_path / "r[12].jsonl")
    rows = stored(pattern, tmp_path / "cache").rows
    assert [row.prompt[0].content for row in rows] == ["Question 1?", "Question 2?"]
    assert rows[1].origin == f"{tmp_path}/r2.jsonl, row 1"
    write_jsonl(tmp_path / "r[12].jsonl", [pair(3)])
    assert [row.prompt[0].content for row in stored(pattern, tmp_path / "cache").rows] == ["Question 3?"]
    with pytest.raises(DataError, match=r"files that match .*s\*\.jsonl, got none"):
        stored(str(tmp_path / "s*.jsonl"), tmp_path / "cache")


def joined(tmp_path: Path, first: list, second: list):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    paths = [write_jsonl(tmp_path / "1" / "r.jsonl", first), write_jsonl(tmp_path / "2" / "r.jsonl", second)]
    sources = Sources("train", paths)
    return join([stored(source, tmp_path / "cache") for source in sources], sources), sources


def test_columns_of_several_sources_have_one_type(tmp_path: Path):
    store, sources = joined(
        tmp_path,
        [pair(1) | {"n": 1, "t": "x", "big": 2**60, "each": [1, 2]}],
        [pair(2) | {"n": 0.5, "t": 3, "each": [1.5, None]}],
    )
    kept, lost = store.rows.columns.infos, store.columns
    assert (kept["n"].kind, kept["n"].missing) == ("number", 0)
    assert [row.columns["n"] for row in store.rows] == [1.0, 0.5]
    assert [row.columns["each"] for row in store.rows] == [(1.0, 2.0), (1.5, None)]
    assert kept["each"].missing == 1
    assert lost["t"].problem == f"a number in {sources[1].label}, but text in {sources[0].label}"
    assert lost["big"].problem.startswith("missing values together with an integer above 2^53")
    # Equal file names are told apart by their folders.
    assert store.rows[1].origin == f"{tmp_path}/2/r.jsonl, row 1"


def test_rows_made_by_transforms_keep_their_source(make, tmp_path):
    """The first source's lists become three pairs each, its repeated row goes, and prompts are held out."""
    lists = [
        {"prompt": f"List {number}?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
        for number in range(5)
    ]
    path = write_jsonl(tmp_path / "lists.jsonl", [*lists, lists[0]])
    data = make(
        train={"lists": Source(path=path, passes=2), "pairs": Source(path=make.a, rows_per_epoch=3)},
        held_out=2,
        transforms=[RemoveDuplicates(), AllPairs()],
    )
    data.setup("fit")
    rows = data.datasets["train"].rows
    held_out = {row.prompt[0].content for row in data.datasets["val"].rows}
    left = sum(row["prompt"] not in held_out for row in lists)
    assert Counter(row.source for row in rows) == {"lists": 3 * left, "pairs": 6 + 5 - left - len(held_out)}
    found = data._mixture(data.datasets["train"])
    assert found.quotas == [2 * 3 * left, 3]
    assert Counter(rows[int(number)].source for number in found.rows(1)) == {"lists": 6 * left, "pairs": 3}

"""Batches from the cached tokens, and the cache itself."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pl_prefopt.data import Cache, PreferenceDataset, Renderer, RowsSummary, collate
from pl_prefopt.data.store import hold_out
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.views import Mismatched
from tests.data.support import BAD_BYTES, dataset, pair, row, stored, write_jsonl
from tests.support import CHATML, tiny_tokenizer

RECORDS = [
    {"prompt": "One?", "responses": ["a", "b b", "c c c"], "scores": [3, 1, 1]},
    {"prompt": "Two?", "chosen": "yes yes", "rejected": "no"},
    {"prompt": "Three?", "completion": "fine", "label": False},
    {"prompt": "Four?", "responses": ["x", "y"]},
]
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def test_a_batch_of_rows_of_every_kind(tmp_path: Path):
    data = dataset(RECORDS, tmp_path, split="val")
    batch = data.batch([2, 0, 1, 3])
    assert batch.index.tolist() == [2, 0, 1, 3]
    assert (batch.index.dtype, batch.scores.dtype, batch.split) == (torch.int64, torch.float32, "val")
    assert batch.present.tolist() == [
        [True, False, False],
        [True] * 3,
        [True, True, False],
        [True, True, False],
    ]
    assert batch.graded.tolist() == [False, True, False, False]
    expected = [[0.0, np.nan, np.nan], [3.0, 1.0, 1.0], [1.0, 0.0, np.nan], [np.nan] * 3]
    np.testing.assert_array_equal(batch.scores.numpy(), expected)
    assert [r.prompt[0].content for r in batch.rows] == ["Three?", "One?", "Two?", "Four?"]


def test_trees_hold_the_encoded_rows_and_nothing_else(tmp_path: Path):
    data = dataset(RECORDS, tmp_path)
    tree = data.batch([0, 1, 2]).trees["plain"]
    assert tree.prompt_ids.dtype == tree.response_ids.dtype == torch.int64
    for b in range(3):
        encoded = data.renderer.encode(data.rows[b])
        assert tree.prompt_ids[b][tree.prompt_mask[b]].tolist() == encoded.prompt_ids
        assert tree.prompt_mask[b].tolist() == sorted(tree.prompt_mask[b].tolist(), reverse=True)
        for r in range(3):
            ids = encoded.response_ids[r] if r < len(encoded.response_ids) else []
            assert tree.response_ids[b, r][tree.response_mask[b, r]].tolist() == ids
            assert tree.counted_mask[b, r].sum() == len(ids)
            assert not tree.response_ids[b, r][~tree.response_mask[b, r]].any()


def test_collate_is_what_a_batch_does(tmp_path: Path):
    data = dataset(RECORDS, tmp_path)
    tree, other = (
        data.batch([0, 1]).trees["plain"],
        collate([data.renderer.encode(data.rows[i]) for i in (0, 1)]),
    )
    assert all(
        torch.equal(getattr(tree, n), getattr(other, n))
        for n in ("prompt_ids", "response_ids", "counted_mask")
    )


def test_a_filler_has_tokens_but_nothing_present(tmp_path: Path):
    batch = dataset(RECORDS, tmp_path).batch([1, ~0])
    assert batch.index.tolist() == [1, 0]
    assert batch.present.tolist() == [[True, True, False], [False] * 3]
    assert batch.scores[1].isnan().all()
    assert batch.graded.tolist() == [False, False]
    assert batch.trees["plain"].response_mask[1].any()


def test_another_tokeniser_reads_the_same_rows(tmp_path: Path):
    data = dataset(RECORDS, tmp_path, views={"mismatched": Mismatched()})
    other = Renderer(tiny_tokenizer(chat_template=None, vocab_size=330))
    own = data.read_by(other)
    batch, same = own.batch([1, 2]), data.batch([1, 2])
    for name, view in (("plain", None), ("mismatched", Mismatched())):
        for b, number in enumerate((1, 2)):
            tree = batch.trees[name]
            encoded = other.encode(view(data.rows, number) if view else data.rows[number])
            assert tree.prompt_ids[b][tree.prompt_mask[b]].tolist() == encoded.prompt_ids
            for r, ids in enumerate(encoded.response_ids):
                assert tree.response_ids[b, r][tree.response_mask[b, r]].tolist() == ids
    assert batch.rows == same.rows
    np.testing.assert_array_equal(batch.scores.numpy(), same.scores.numpy())
    assert own.fingerprint != data.fingerprint


def test_the_rows_too_long_for_a_model_are_found_by_prompt_and_longest_response(tmp_path: Path):
    renderer = Renderer(tiny_tokenizer())
    data = dataset(RECORDS, tmp_path, renderer=renderer)
    longest = []
    for row_ in data.rows:
        encoded = renderer.encode(row_)
        longest.append(len(encoded.prompt_ids) + max(len(ids) for ids in encoded.response_ids))
    assert data.longer_than(max(longest)) == []
    assert data.longer_than(max(longest) - 1) == [n for n in range(4) if longest[n] == max(longest)]
    assert data.longer_than(min(longest) - 1) == [0, 1, 2, 3]
    # All responses together may be longer than the limit.
    assert data.lengths.max() > max(longest)


def test_views_are_other_trees_of_the_same_rows(tmp_path: Path):
    data = dataset(RECORDS, tmp_path, views={"mismatched": Mismatched()})
    batch = data.batch([1, 3])
    assert list(batch.trees) == ["plain", "mismatched"]
    tree = batch.trees["mismatched"]
    for b, (prompt, donor) in enumerate(((1, 2), (3, 0))):
        own, other = data.renderer.encode(data.rows[prompt]), data.renderer.encode(data.rows[donor])
        assert tree.prompt_ids[b][tree.prompt_mask[b]].tolist() == own.prompt_ids
        assert tree.response_ids[b, 0][tree.response_mask[b, 0]].tolist() == other.response_ids[0]
    assert list(data.batch([1], views=["mismatched"]).trees) == ["mismatched"]
    with pytest.raises(ConfigError, match="did you mean 'mismatched'"):
        data.batch([0], views=["mismatch"])


def test_the_summary_counts(tmp_path: Path):
    renderer = Renderer(tiny_tokenizer(), max_response_length=2)
    data = dataset(RECORDS, tmp_path, renderer=renderer)
    assert data.summary == RowsSummary(
        rows=4, responses=8, single=1, comparable=2, graded=1, truncated_prompts=0, truncated_responses=4
    )
    assert "4 responses truncated" in data.report
    assert "4 rows, 8 responses, 2 rows whose scores differ" in data.report
    assert data.lengths.tolist() == [data.renderer.encode(r).length for r in data.rows]


def test_a_dataset_travels_to_workers(tmp_path: Path):
    data = dataset(RECORDS, tmp_path)
    copy = pickle.loads(pickle.dumps(data))
    assert (
        copy.batch([0]).trees["plain"].prompt_ids.tolist()
        == data.batch([0]).trees["plain"].prompt_ids.tolist()
    )


def test_rows_that_the_template_refuses_are_skipped_too(tmp_path: Path):
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}]
    path = write_jsonl(tmp_path / "rows.jsonl", [BAD_BYTES, {**pair(0), "prompt": system}, pair(1)])
    renderer, cache = Renderer(tiny_tokenizer(chat_template=NO_SYSTEM)), Cache(tmp_path / "cache")
    store = stored(path, tmp_path / "cache", on_bad_row="skip")
    data = PreferenceDataset.tokenised(store, renderer, cache=cache, on_bad_row="skip")
    assert (len(data), data.summary.skipped) == (1, 2)
    assert data.rows[0].origin == "rows.jsonl, row 3"
    assert data.batch([0]).rows[0] == data.rows[0]
    assert "2 bad rows skipped" in data.report
    assert "rows.jsonl, row 2: the tokeniser's chat template rejects" in data.report
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2"):
        PreferenceDataset.tokenised(store, renderer, cache=cache)


def test_the_second_start_tokenises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = dataset(RECORDS, tmp_path, views={"mismatched": Mismatched()})
    monkeypatch.setattr(Renderer, "render", None)
    monkeypatch.setattr(Renderer, "tokenise", None)
    second = dataset(RECORDS, tmp_path, views={"mismatched": Mismatched()})
    assert (second.fingerprint, second.summary, second.report) == (
        first.fingerprint,
        first.summary,
        first.report,
    )
    assert second.batch([0, 1]).trees["mismatched"].prompt_ids.shape[0] == 2


def test_what_changes_tokens_or_rows_changes_the_fingerprint(tmp_path: Path):
    changed = [*RECORDS[:3], {**RECORDS[3], "scores": [1, 2]}]
    prints = [
        dataset(RECORDS, tmp_path).fingerprint,
        dataset(changed, tmp_path).fingerprint,
        dataset(RECORDS[:3], tmp_path).fingerprint,
        dataset(RECORDS, tmp_path, renderer=Renderer(tiny_tokenizer(), template="plain")).fingerprint,
        dataset(RECORDS, tmp_path, views={"mismatched": Mismatched()}).fingerprint,
        dataset(RECORDS, tmp_path, numbers=np.array([0, 1])).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert dataset(RECORDS, tmp_path).fingerprint == prints[0]


def test_the_fingerprint_does_not_depend_on_the_files_name(tmp_path: Path):
    data = dataset(RECORDS, tmp_path)
    store = stored(write_jsonl(tmp_path / "copy.jsonl.gz", RECORDS), tmp_path / "cache")
    copy = PreferenceDataset.tokenised(store, data.renderer, cache=Cache(tmp_path / "cache"))
    assert copy.fingerprint == data.fingerprint
    assert copy.rows[0].origin == "copy.jsonl.gz, row 1"


def test_a_result_that_breaks_off_leaves_nothing_behind(tmp_path: Path):
    cache = Cache(tmp_path)

    def breaks(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("x", (1,), breaks)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]
    done = cache.entry("x", (1,), lambda folder: (folder / "whole").write_text("y") and None)
    assert sorted(path.name for path in done.iterdir()) == ["checksums.txt", "whole"]


def test_the_first_of_two_processes_wins_where_there_are_no_locks(tmp_path: Path, monkeypatch):
    def without_locks(*args, **kwargs):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("filelock.FileLock.acquire", without_locks)
    cache = Cache(tmp_path)

    def loses(folder: Path) -> None:
        cache.entry("x", (1,), lambda other: (other / "winner").write_text("") and None)
        (folder / "loser").write_text("")

    assert "winner" in [path.name for path in cache.entry("x", (1,), loses).iterdir()]
    assert len([path for path in tmp_path.iterdir() if path.name != ".locks"]) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.cache_dir"):
        Cache(tmp_path / "file" / "cache").entry("x", (1,), lambda folder: None)


@pytest.mark.parametrize(("held_out", "least"), [(3, 3), (0.25, 5)])
def test_prompts_are_held_out_whole(held_out: float, least: int):
    rows = [row(f"Prompt {i // 2}", str(i), "x") for i in range(20)]
    chosen = hold_out(rows, held_out, seed=1)
    assert least <= chosen.sum() <= least + 1
    assert (chosen[::2] == chosen[1::2]).all()
    assert (hold_out(rows, held_out, seed=1) == chosen).all()
    assert any((hold_out(rows, held_out, seed=seed) != chosen).any() for seed in range(2, 6))


def test_no_flipped_bit_of_the_cache_is_trained_on(tmp_path: Path):
    data = dataset([pair(i) for i in range(4)], tmp_path)
    whole = data.batch([0, 1, 2, 3])
    rng = np.random.default_rng(0)
    files = [path for path in (tmp_path / "cache").glob("*-*/*") if path.is_file()]
    assert {path.name for path in files} == {"rows.arrow", "tokens.arrow", "notes.json", "checksums.txt"}
    for path in files:
        content = bytearray(path.read_bytes())
        for place in rng.integers(len(content) * 8, size=5).tolist():
            content[place // 8] ^= 1 << (place % 8)
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"is corrupt .* delete the folder"):
                dataset([pair(i) for i in range(4)], tmp_path)
            content[place // 8] ^= 1 << (place % 8)
        path.write_bytes(content)
    again = dataset([pair(i) for i in range(4)], tmp_path).batch([0, 1, 2, 3])
    assert torch.equal(again.trees["plain"].response_ids, whole.trees["plain"].response_ids)


SAME = [
    ({"prompt": "Hi", "chosen": "a b c d", "rejected": "a b c e"}, 3, "after the first 3 tokens"),
    ({"prompt": "Hi", "chosen": "ab ", "rejected": "ab"}, 9, "in nothing that is tokenised"),
    (
        {"prompt": "Hi", "responses": ["x", "y", "x"], "scores": [1, 2, 3]},
        9,
        "responses 1 and 3 have the scores 1",
    ),
    (
        {
            "instruction": "Hi",
            "completions": [{"response": "x", "rating": 2}, {"response": "x", "rating": 1}],
        },
        9,
        "responses 1 and 2",
    ),
]


@pytest.mark.parametrize(("fields", "limit", "reason"), SAME)
def test_responses_that_are_the_same_tokens_are_a_bad_row(tmp_path: Path, fields, limit: int, reason: str):
    trimming = CHATML.replace("m['content']", "m['content'] | trim")
    renderer = Renderer(tiny_tokenizer(chat_template=trimming), max_response_length=limit)
    with pytest.raises(DataError, match=rf"rows.jsonl, row 2: .*{reason}"):
        dataset([pair(0), fields], tmp_path, renderer=renderer)
    data = dataset([pair(0), fields], tmp_path, renderer=renderer, on_bad_row="skip")
    assert (len(data), data.summary.skipped, data.summary.comparable) == (1, 1, 1)


def test_equal_responses_of_equal_scores_are_a_tie(tmp_path: Path):
    assert len(dataset([{"prompt": "Hi", "responses": ["x", "y", "x"], "scores": [1, 2, 1]}], tmp_path)) == 1

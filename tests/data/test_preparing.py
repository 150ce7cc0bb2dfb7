"""Tokenising in parts: the same table from any number of processes, and after a kill."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pl_prefopt.data import Cache, Renderer, preparing
from pl_prefopt.data.store import store_tokens
from pl_prefopt.errors import DataError
from tests.data.support import pair, stored, write_jsonl
from tests.support import tiny_tokenizer

ROWS = 23


@pytest.fixture
def rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(preparing, "ROWS_PER_PART", 5)
    records = [pair(number, words=number % 4) for number in range(ROWS)]
    records[7]["rejected"] = records[7]["chosen"] + " "  # the same tokens, since the template trims
    records[7]["chosen"] += "  "
    return stored(write_jsonl(tmp_path / "rows.jsonl", records), tmp_path / "cache").rows


class Counting(Renderer):
    """Counts what it renders, and is interrupted at a row."""

    rendered = 0
    stop_at = -1

    def render(self, row):
        if self.rendered == self.stop_at:
            raise KeyboardInterrupt
        self.rendered += 1
        return super().render(row)


def trimming() -> Counting:
    template = tiny_tokenizer().chat_template.replace("m['content']", "m['content'] | trim")
    return Counting(tiny_tokenizer(chat_template=template))


def tokens(folder: Path, rows, renderer: Renderer, processes: int = 1):
    cache = Cache(folder)
    return store_tokens(
        cache, rows, renderer, key=("k",), on_bad_row="skip", distinct=True, processes=processes
    )


def content(folder: Path) -> dict[str, bytes]:
    (entry,) = folder.glob("tokens-*")
    return {path.name: path.read_bytes() for path in entry.iterdir()}


def test_any_number_of_processes_gives_the_same_files(tmp_path: Path, rows):
    found = [tokens(tmp_path / str(count), rows, trimming(), count) for count in (1, 2, 3)]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    assert found[0].table.column("row").tolist() == [number for number in range(ROWS) if number != 7]
    assert found[0].skipped == 1
    assert "row 8: responses 1 and 2" in found[0].problems[0]
    assert found[0].tally.summary.rows == ROWS - 1
    assert not list((tmp_path / "2").glob(".unfinished-*"))


def test_finished_parts_survive_an_interruption_unless_they_are_corrupt(tmp_path: Path, rows):
    expected = tokens(tmp_path / "whole", rows, trimming())
    broken = trimming()
    broken.stop_at = 17  # in the fourth part of five
    with pytest.raises(KeyboardInterrupt):
        tokens(tmp_path / "cache2", rows, broken)
    (unfinished,) = (tmp_path / "cache2").glob(".unfinished-tokens-*")
    assert len(list(unfinished.glob("part-*.json"))) == 3
    (unfinished / "part-000001.arrow").write_bytes(b"corrupt")
    again = trimming()
    found = tokens(tmp_path / "cache2", rows, again)
    assert again.rendered == 5 + 5 + 3  # the corrupt part, the interrupted one and the last
    assert found.content == expected.content
    assert content(tmp_path / "cache2") == content(tmp_path / "whole")


def test_the_first_bad_row_is_the_error_of_any_number_of_processes(tmp_path: Path, rows):
    for count in (1, 2):
        with pytest.raises(DataError, match="row 8: responses 1 and 2"):
            store_tokens(
                Cache(tmp_path / str(count)), rows, trimming(), key=(), distinct=True, processes=count
            )
        assert not list((tmp_path / str(count)).glob(".unfinished-*"))


def test_a_pair_is_rendered_three_times(tmp_path: Path, rows, monkeypatch):
    renderer, calls = trimming(), []
    render = type(renderer._template)._render
    monkeypatch.setattr(
        type(renderer._template),
        "_render",
        lambda self, *args, **options: calls.append(args) or render(self, *args, **options),
    )
    renderer.render(rows[0])
    assert len(calls) == 3  # the prompt, and the dialogue with each response


def test_what_killed_processes_left_is_cleared(tmp_path: Path):
    locks = tmp_path / ".locks"
    locks.mkdir()

    def left(name: str, *files: str, days: int = 0) -> Path:
        folder = tmp_path / f".unfinished-{name}"
        folder.mkdir()
        for file in files:
            (folder / file).touch()
        os.utime(folder, (time.time() - days * 86400,) * 2)
        return folder

    dead, running = left("rows-dead", "rows.arrow"), left("rows-running", "rows.arrow", days=9)
    parts, forgotten = left("tokens-parts", "part-0.json"), left("tokens-old", "part-0.json", days=9)
    foreign = left("abcdef", "rows.arrow")
    for name in ("rows-dead", "rows-running", "tokens-parts", "tokens-old"):
        (locks / f"{name}.lock").touch()
    with FileLock(locks / "rows-running.lock"):
        Cache(tmp_path).entry("rows", ("k",), lambda folder: (folder / "a").touch())
    assert [folder.exists() for folder in (dead, running, parts, forgotten, foreign)] == [
        *(False, True, True, False, True)
    ]


def test_an_entry_is_built_once_by_those_that_ask_at_the_same_time(tmp_path: Path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "a").write_text("a")

    def build_after_another(folder: Path) -> None:
        raise AssertionError("built twice")

    first, second = Cache(tmp_path), Cache(tmp_path)
    alone = second._alone

    def late(name: str):
        first.entry("rows", ("k",), build)  # between the look for the entry and the lock
        return alone(name)

    second._alone = late
    assert second.entry("rows", ("k",), build_after_another).name == first.entry("rows", ("k",), build).name
    assert len(built) == 1

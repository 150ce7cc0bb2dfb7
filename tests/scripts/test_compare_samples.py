"""The comparison of the samples of two engines."""

from __future__ import annotations

import pytest

from pl_prefopt.generation import write_shard
from scripts.servers import compare_samples


def test_samples_are_compared_token_by_token_whatever_their_shards_format(tmp_path, monkeypatch, capsys):
    row = {"prompt": [{"role": "user", "content": "Hi"}], "token_ids": [[1, 2], [3]]}
    other = {**row, "token_ids": [[1, 5], [3]]}
    for folder, kind, held in (("a", "parquet", row), ("b", "jsonl", row), ("c", "jsonl", other)):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / f"part-00000.{kind}", [held])
    monkeypatch.chdir(tmp_path)
    for names, status in (
        ("ab", False),
        ("ac", True),
        ("xy", "expected samples in x and y, found none."),
    ):
        monkeypatch.setattr("sys.argv", ["compare_samples.py", *names])
        with pytest.raises(SystemExit) as end:
            compare_samples.main()
        assert end.value.code == status
    printed = capsys.readouterr().out
    assert "2 of 2 samples have the same tokens" in printed
    assert "1 of 2 samples have the same tokens" in printed
    assert "sample 0: the first token that differs is number 1" in printed

"""Rows in numbered shards, Parquet or JSON lines, that survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pl_prefopt.errors import DataError, first_line
from pl_prefopt.files import atomic_write, name_os_errors

Format = Literal["parquet", "jsonl"]
"""The file format of shards."""
Row = Mapping[str, Any]


class ShardWriter:
    """Appends rows in batches; every ``rows_per_shard`` rows become a shard.

    The rows of an unfinished shard are in a journal, flushed to disk batch by batch. After a kill, ``rows``
    says how many are safe, and writing goes on after them.

    Args:
        folder: where the shards are.
        rows_per_shard: rows per shard, the last one aside.
        kind: the format of finished shards.
    """

    def __init__(self, folder: Path, *, rows_per_shard: int, kind: Format = "parquet") -> None:
        self.folder, self.rows_per_shard, self.kind = folder, rows_per_shard, kind
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = folder / ".unfinished.jsonl"
        self._shards = len(shard_files(folder))
        self._open = self._recovered()

    @property
    def rows(self) -> int:
        """The number of rows that are written."""
        return self._shards * self.rows_per_shard + len(self._open)

    def written(self) -> Iterator[Row]:
        """Yield the rows that are written, those of the unfinished shard last."""
        yield from read_shards(self.folder)
        yield from self._open

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows, all of them or none."""
        # One line per batch, so that a torn line is a batch that was never written.
        line = json.dumps({"shard": self._shards, "rows": list(rows)}) + "\n"
        with name_os_errors(self._journal), self._journal.open("ab") as file:
            before = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        self._open.extend(rows)
        while len(self._open) >= self.rows_per_shard:
            self._publish(self._open[: self.rows_per_shard])

    def finish(self) -> None:
        """Write the last shard."""
        while self._open:  # several after a kill, or a full disk, between a batch and its shard
            self._publish(self._open[: self.rows_per_shard])
        self._journal.unlink(missing_ok=True)

    def _publish(self, rows: Sequence[Row]) -> None:
        write_shard(self.folder / f"part-{self._shards:05d}.{self.kind}", rows)
        self._shards += 1
        self._open = self._open[len(rows) :]
        rest = json.dumps({"shard": self._shards, "rows": self._open}) + "\n"
        with atomic_write(self._journal) as draft:
            draft.write_text(rest, encoding="utf-8")

    def _recovered(self) -> list[Row]:
        """Return the rows of the unfinished shard, and remove a torn last line."""
        if not self._journal.is_file():
            return []
        content = self._journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with atomic_write(self._journal) as draft:
                draft.write_bytes(whole)
        batches = [json.loads(line) for line in whole.splitlines()]
        rows = [row for batch in batches for row in batch["rows"]]
        if batches and batches[0]["shard"] < self._shards:  # killed between the shard and its journal
            rows = rows[self.rows_per_shard :]
        return rows


def write_shard(path: Path, rows: Sequence[Row]) -> None:
    """Write one shard atomically; as JSON lines under the same name where Parquet would change a value."""
    table = _table(rows) if path.suffix == ".parquet" else None
    if table is not None:
        with atomic_write(path) as draft:
            pq.write_table(table, draft)
        return
    with atomic_write(path.with_suffix(".jsonl")) as draft:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        draft.write_text("".join(lines), encoding="utf-8")


def _table(rows: Sequence[Row]) -> pa.Table | None:
    """Return rows as a table; ``None`` if it would not hold them as they are.

    Arrow knows the keys of objects by their column: objects with other keys get nulls, which is harmless for
    rows and messages, where null means absent, and would change what is nested in them. The arguments of
    chat templates are JSON texts, which readers of rows understand.
    """
    written = [
        {name: _as_json(value) if name in _JSON else value for name, value in row.items()} for row in rows
    ]
    names = dict.fromkeys(name for row in written for name in row)
    try:
        table = pa.table({name: [row.get(name) for row in written] for name in names})
    except pa.ArrowException:  # values of several types in one column
        return None
    read = table.to_pylist()
    return table if all(map(_same, read, written)) else None


_JSON = ("tools", "chat_template_kwargs")


def _as_json(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _same(read: Row, written: Row) -> bool:
    """Return whether a row was read as it was written; keys of rows and of messages may be null."""
    return all(_same_value(value, written.get(name)) for name, value in read.items())


def _same_value(read: Any, written: Any) -> bool:
    if isinstance(read, list) and isinstance(written, list | tuple) and len(read) == len(written):
        return all(map(_same_value, read, written))
    if isinstance(read, dict) and isinstance(written, dict):
        return {k: v for k, v in read.items() if v is not None} == {
            k: v for k, v in written.items() if v is not None
        }
    return bool(read == written)


def _from_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose arguments of chat templates are objects again."""
    texts = {name: row[name] for name in _JSON if isinstance(row.get(name), str)}
    return row | {name: json.loads(text) for name, text in texts.items()}


def shard_files(folder: Path) -> list[Path]:
    """Return the finished shards of a folder, in order."""
    return sorted(path for path in folder.glob("part-*") if path.suffix in (".parquet", ".jsonl"))


def read_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of all shards of a folder, one shard in memory at a time.

    Raises:
        DataError: if a shard can't be read.
    """
    for path in shard_files(folder):
        try:
            if path.suffix == ".parquet":
                rows = [_from_json(row) for row in pq.read_table(path).to_pylist()]
            else:
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"expected a shard of rows at {path}, got: {first_line(error)}; remove the folder and run "
                "the command again."
            ) from error
        yield from rows

"""Time and disk space of further columns: 10^5 pairs into the cache and out of it, with none and with five.

python scripts/benchmarks/row_columns.py [ROWS]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pl_prefopt.data import Cache, Source
from pl_prefopt.data.store import store_rows


def pair(number: int) -> dict[str, Any]:
    """Return a pair of 30 words a response."""
    texts = {"prompt": "word ", "chosen": "indeed ", "rejected": "no "}
    return {key: f"{key} {number} " + 30 * text for key, text in texts.items()}


def columns(number: int) -> dict[str, Any]:
    """Return a column of each kind."""
    return {
        "annotator": f"r{number % 17}",
        "worker": 2**53 + number,
        "weight": number / 7,
        "easy": number % 2 == 0,
        "votes": [number, 1],
    }


def measure(folder: Path, count: int, *, wide: bool) -> str:
    """Return the processor seconds and the bytes of one run; check that what comes out is what went in."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps(pair(number) | (columns(number) if wide else {})) + "\n")
    cache, start = Cache(folder / f"cache {wide}"), time.process_time()
    rows = store_rows(cache, Source(path=str(path)), on_bad_row="error", max_rows=None).rows
    written = time.process_time()
    for number, row in enumerate(rows):
        expected = columns(number) | {"votes": (number, 1)} if wide else {}
        assert row.columns == expected, (number, row.columns)
    read = time.process_time()
    size = sum(file.stat().st_size for file in cache.root.rglob("*.*") if file.is_file())
    return f"write {written - start:.2f} s, read {read - written:.2f} s, {size / 2**20:.1f} MiB"


def main() -> None:
    """Print both."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        for wide in (False, True):
            print(f"{count} rows, {5 if wide else 0} columns: {measure(Path(folder), count, wide=wide)}")


if __name__ == "__main__":
    main()

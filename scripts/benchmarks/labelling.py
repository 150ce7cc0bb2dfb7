"""Time and memory of labelling many rows with a rule.

    python scripts/benchmarks/labelling.py [--rows 100000]

Writes pairs of about a kilobyte, labels them, and prints the resident set of the process after each tenth of the
rows. It is flat if memory doesn't depend on the number of rows.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from pl_prefopt.data import Source
from pl_prefopt.judges import Rule
from pl_prefopt.judges.labelling import Labelled, Labelling

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "nobody", "looks", "on")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        _write(data, rows)
        memory: dict[int, float] = {}

        def measure(done: int, total: int, _: Labelled) -> None:
            tenth = 10 * done // total
            memory.setdefault(tenth, _resident_mib())

        labelling = Labelling(source=Source(path=str(data)), judge=Rule("pl_prefopt.judges.rules.brevity"))
        start, before = time.perf_counter(), _resident_mib()
        found = labelling.run(Path(folder) / "graded.jsonl", measure)
        seconds = time.perf_counter() - start
        print(f"{found.rows} rows of {data.stat().st_size / rows:.0f} bytes in {seconds:.0f} s")
        print(f"memory before the first row: {before:.0f} MiB")
        for tenth, mib in sorted(memory.items()):
            print(f"  after {10 * tenth:>3} % of the rows: {mib:.0f} MiB")


def _write(path: Path, rows: int) -> None:
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 100))) for _ in range(3)]
            row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
            file.write(json.dumps({**row, "number": number}) + "\n")


def _resident_mib() -> float:
    """Return the resident set of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()

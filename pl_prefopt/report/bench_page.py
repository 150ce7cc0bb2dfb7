"""The page on what judges scored on benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.errors import DataError, first_line
from pl_prefopt.report.plain_page import Table

FILE = "result.json"


def is_bench(folder: Path) -> bool:
    """Return whether ``prefopt bench`` has written the folder."""
    return (folder / FILE).is_file()


def read_results(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the results of ``prefopt bench`` by the names of their folders.

    Raises:
        DataError: if a file can't be read.
    """
    found = {}
    for folder in folders:
        try:
            found[str(folder)] = json.loads((folder / FILE).read_text(encoding="utf-8"))
            assert "tables" in found[str(folder)]
        except (OSError, ValueError, AssertionError) as error:
            raise DataError(
                f"expected the result of `prefopt bench` at {folder / FILE}, got: {first_line(error)}."
            ) from error
    return found


def bench_tables(results: dict[str, dict[str, Any]]) -> tuple[list[Table], list[str]]:
    """Return a table of overall scores, one per table of each benchmark, and notes.

    Results of one benchmark share a table, one column per folder.
    """
    overall = Table("overall", ("benchmark", "judge", "folder", "score", "tasks", "part"))
    notes = []
    for folder, result in results.items():
        counts = result["counts"]
        overall.add(
            result["benchmark"],
            str(result.get("judge", "–")),
            folder,
            _shown(result["overall"]),
            ", ".join(f"{name} {count}" for name, count in counts.items()),
            "partial" if result.get("partial") else "all",
        )
        notes += [f"{folder}: {note}" for note in result["notes"]]
    tables = [overall]
    for benchmark in dict.fromkeys(one["benchmark"] for one in results.values()):
        same = {folder: one for folder, one in results.items() if one["benchmark"] == benchmark}
        for title in dict.fromkeys(title for one in same.values() for title in one["tables"]):
            table = Table(f"{benchmark}: {title}", ("", *same))
            for name in dict.fromkeys(name for one in same.values() for name in one["tables"].get(title, {})):
                cells = [_shown(one["tables"].get(title, {}).get(name)) for one in same.values()]
                table.add(name, *cells)
            tables.append(table)
    return tables, notes


def _shown(number: dict[str, Any] | None) -> str:
    if number is None or number["value"] is None:
        return "–"
    interval = "" if number["low"] is None else f" [{100 * number['low']:.1f}, {100 * number['high']:.1f}]"
    return f"{100 * number['value']:.2f} %{interval}"

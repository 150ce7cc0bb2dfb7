"""Fill the tables of measured speed and memory in the documentation from docs/benchmarks/results.csv.

`python -m scripts.site.benchmarks` writes them between `<!-- results: CASE -->`, or `<!-- targets -->`, and
`<!-- end -->`; a test compares the pages with the file. A table shows the last run of its case. A device in
the place of a case, such as `cuda`, stands for all of its cases that were measured.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
RESULTS = ROOT / "docs" / "benchmarks" / "results.csv"
CASES = ROOT / "scripts" / "benchmarks" / "cases.yaml"

Row = dict[str, str]
_PLACE = re.compile(r"(<!-- (results: (?P<case>\w+)|targets) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
_RUN = ("date", "commit", "card", "versions")
_TITLES = (
    *("contender", "prompts/s", "unique tokens/s", "peak GiB", "MFU", "spread", "speed", "memory"),
    "relative to",
)
_NUMBERS = ("prompts", "steps", "step_s", "tokens_per_s", "peak_gib", "mfu", "spread")


def filled(text: str) -> str:
    """Return a page's text with its tables made from the results."""
    rows = read()

    def fill(place: re.Match[str]) -> str:
        name = place["case"]
        made = targets(rows) if name is None else (tables if name in _cases() else table)(name, rows)
        return f"{place[1]}\n{made}\n{place[4]}"

    return _PLACE.sub(fill, text)


def read() -> list[Row]:
    """Return the rows of the file."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tables(device: str, rows: Sequence[Row]) -> str:
    """Return the tables of all cases of a device that were measured."""
    names = [name for name in _cases()[device]["cases"] if last_run(name, rows)]
    shown = [f"**{case_of(name)['about']}** (`{name}`)\n\n{table(name, rows)}" for name in names]
    return "\n".join(shown) or "Not measured.\n"


def table(case: str, rows: Sequence[Row]) -> str:
    """Return the last run of a case as a table, with the machine and the versions below it."""
    measured = last_run(case, rows)
    if not measured:
        return "Not measured.\n"
    settings = case_of(case)
    lines = [[name, *_cells(row, _peer(settings, name, measured))] for name, row in measured.items()]
    shown = [place for place in range(len(_TITLES)) if any(line[place] for line in lines)]
    made = ["| " + " | ".join(line[place] for place in shown) + " |" for line in (list(_TITLES), *lines)]
    made.insert(1, "|" + "---|" * len(shown))
    one = next(iter(measured.values()))
    where = ", ".join(filter(None, (one["date"], one["commit"] and f"commit {one['commit']}", one["card"])))
    return "\n".join([*made, "", f"{where}; {one['versions']}.", ""])


def _cells(row: Row, peer: Row | None) -> list[str]:
    """Return the cells after the contender's name; those of a failed contender are its note."""
    if row["note"]:
        return [row["note"], *[""] * (len(_TITLES) - 2)]
    speed = float(row["prompts"]) / float(row["step_s"])
    return [
        f"{speed:.3f}" if speed < 1 else f"{speed:.3g}",
        f"{float(row['tokens_per_s']):,.0f}" if row["tokens_per_s"] else "",
        row["peak_gib"],
        f"{float(row['mfu']):.0%}" if row["mfu"] else "",
        f"{float(row['spread']):.0%}" if row["spread"] else "",
        *(_ratios(row, peer) if peer is not None else ("", "")),
        peer["contender"] if peer is not None else "",
    ]


def _ratios(row: Row, peer: Row) -> tuple[str, str]:
    """Return the speed and the memory relative to the peer's."""
    return _rounded(1 / ratio(row, peer, "step_s")), _rounded(ratio(row, peer, "peak_gib"))


def _rounded(number: float) -> str:
    """Return two significant digits: more are not measured."""
    return f"{number:.1f}" if number >= 1 else f"{number:#.2g}"


def ratio(row: Row, peer: Row, column: str) -> float:
    """Return a number of a row over the peer's; of steps, seconds per prompt."""
    one, other = (float(each[column]) for each in (row, peer))
    if column == "step_s":
        one, other = one / float(row["prompts"]), other / float(peer["prompts"])
    return one / other


def last_run(case: str, rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows of a case's last run by contender; of several repeats, the median of each number."""
    mine = [row for row in rows if row["case"] == case]
    if not mine:
        return {}
    last = [row for row in mine if all(row[key] == mine[-1][key] for key in _RUN)]
    found: dict[str, list[Row]] = {}
    for row in last:
        found.setdefault(row["contender"], []).append(row)
    return {name: _median(repeats) for name, repeats in found.items()}


def _median(repeats: list[Row]) -> Row:
    measured = [row for row in repeats if not row["note"]]
    if len(measured) < 2:
        return (measured or repeats)[0]
    values = {key: [float(row[key]) for row in measured if row[key]] for key in _NUMBERS}
    return {**measured[0], **{key: f"{statistics.median(some):.4g}" for key, some in values.items() if some}}


@cache
def _cases() -> dict[str, Any]:
    cases: dict[str, Any] = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    return cases


def case_of(name: str) -> dict[str, Any]:
    """Return a case's settings over the defaults of its device; those of an unknown case are empty."""
    for of_device in _cases().values():
        if name in of_device.get("cases", ()):
            return {**of_device["defaults"], **of_device["cases"][name]}
    return {"contenders": {}}


def _peer(settings: dict[str, Any], name: str, measured: dict[str, Row]) -> Row | None:
    """Return the row that a contender is compared with, ``None`` for itself, a floor or one that failed."""
    contender = settings["contenders"].get(name, {})
    if contender.get("kind") == "floor":
        return None
    against = contender.get("against", settings.get("peer"))
    row = measured.get(against) if against != name else None
    return None if row is None or row["note"] else row


def targets(rows: Sequence[Row]) -> str:
    """Return what the cases of a GPU aim at, and whether it was reached."""
    lines = ["| case | contender | relative to | target | measured |", "|---|---|---|---|---|"]
    for case in _cases()["cuda"]["cases"]:
        settings, measured = case_of(case), last_run(case, rows)
        for name, contender in settings["contenders"].items():
            for aim, wanted in (contender.get("target") or {}).items():
                against = contender.get("against", settings["peer"]) if aim in ("speed", "memory") else ""
                value = _value(aim, measured.get(name), measured.get(against))
                bound = "at most" if aim == "memory" else "at least"
                lines.append(
                    f"| `{case}` | {name} | {against} | {bound} {_FORMS[aim].format(wanted)} "
                    f"| {'not measured' if value is None else _FORMS[aim].format(value)} |"
                )
    return "\n".join([*lines, ""])


_FORMS = {
    "speed": "{:.1f} times the speed",
    "memory": "{:.2f} of the memory",
    "tokens_per_s": "{:,.0f} unique tokens/s",
    "mfu": "{:.0%} MFU",
}


def _value(aim: str, row: Row | None, peer: Row | None) -> float | None:
    """Return what was measured; ``None`` where something is missing."""
    if row is None or row["note"]:
        return None
    if aim in row:
        return float(row[aim]) if row[aim] else None
    if peer is None or peer["note"]:
        return None
    return 1 / ratio(row, peer, "step_s") if aim == "speed" else ratio(row, peer, "peak_gib")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")

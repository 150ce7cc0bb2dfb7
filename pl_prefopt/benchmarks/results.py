"""The numbers of a benchmark, as tables, text and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pl_prefopt.benchmarks.estimates import Estimate

Table = Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark measured; all numbers are shares, 1 for 100 %.

    Attributes:
        title: the benchmark's name.
        overall: its overall score as published; ``None`` where it can't be computed, which ``notes`` explain.
        tables: the numbers by part, such as ``{"sections": {"Chat": ...}}``.
        counts: how many tasks, and how many of them with invalid answers or ties.
        notes: sentences on what a reader must know.
    """

    title: str
    overall: Estimate | None
    tables: Mapping[str, Table] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; intervals that can't be computed are null."""
        return {
            "benchmark": self.title,
            "overall": None if self.overall is None else number(self.overall),
            "tables": {
                title: {name: number(one) for name, one in table.items()}
                for title, table in self.tables.items()
            },
            "counts": dict(self.counts),
            "notes": list(self.notes),
        }

    def lines(self) -> Iterator[str]:
        """Yield the result as lines of text, in per cent."""
        overall = "not computed" if self.overall is None else _percent(self.overall)
        yield f"{self.title}: {overall}"
        for title, table in self.tables.items():
            yield f"\n{title}"
            width = max(map(len, table), default=0)
            for name, one in table.items():
                yield f"  {name:<{width}}  {_percent(one)}  ({one.count})"
        yield "\n" + ", ".join(f"{name} {count}" for name, count in self.counts.items())
        yield from self.notes


def number(one: Estimate) -> dict[str, Any]:
    """Return an estimate as JSON values."""
    low, high = one.interval or (None, None)
    value = one.value if math.isfinite(one.value) else None
    return {"value": value, "low": low, "high": high, "count": one.count}


def _percent(one: Estimate) -> str:
    if one.interval is None:
        return f"{100 * one.value:6.2f}"
    low, high = one.interval
    return f"{100 * one.value:6.2f} [{100 * low:.2f}, {100 * high:.2f}]"

"""The demo's rule as a judge of ``prefopt``, named in a configuration as ``scripts.demo.judge.form``."""

from __future__ import annotations

from pl_prefopt.judges import JudgedRow
from scripts.demo.rule import score


def form(row: JudgedRow) -> list[float]:
    """Score the form of each response from 1 to 10."""
    prompt = row.prompt[-1].content
    return [score(prompt, "\n".join(turn.content for turn in response)) for response in row.responses]

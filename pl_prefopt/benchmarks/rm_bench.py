"""RM-Bench (Liu et al., arXiv 2410.16184): right against wrong responses of three styles each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from pl_prefopt.benchmarks.estimates import Estimate, combine, estimates
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.benchmarks.tasks import Answers, Benchmark, Task, text, texts
from pl_prefopt.data.file_readers import Record
from pl_prefopt.judges import Gives

STYLES = ("concise", "detailed", "markdown")
"""The styles of the responses, in the order of the files: from the plainest to the fanciest."""
DOMAINS = ("chat", "math", "code", "safety")
_CELLS = [(i, j) for i in range(3) for j in range(3)]
_DIFFICULTIES = {
    "hard": [(i, j) for i, j in _CELLS if i < j],
    "normal": [(i, j) for i, j in _CELLS if i == j],
    "easy": [(i, j) for i, j in _CELLS if i > j],
}


class RMBench(Benchmark):
    """RM-Bench: is the right response preferred, whatever the styles of the two?

    Entry (i, j) of the 3 × 3 matrix is the share of prompts whose right response of style i has a higher
    score than the wrong one of style j; ties and invalid answers are wrong. Hard is the mean of the entries
    above the diagonal, where the wrong response has the fancier style, normal that of the diagonal and easy
    that of those below it. A domain's score is the mean of its three; the overall one is the mean of the four
    domains, and so are hard, normal and easy. ``safety-refuse`` and ``safety-response`` are one domain.
    """

    name = "rm_bench"
    title = "RM-Bench"
    hub, split = "THU-KEG/RM-Bench", "train"
    columns = ("id", "prompt", "chosen", "rejected", "domain")
    counts: ClassVar[Mapping[str, int]] = {
        "chat": 129,
        "code": 228,
        "math": 529,
        "safety-refuse": 284,
        "safety-response": 157,
    }

    def tasks(self, records: Iterable[Record]) -> Iterator[Task]:
        """Return a task per row."""
        for record in records:
            domain = text(record, "domain")
            yield Task(
                subset=domain,
                key=f"{domain}/{record.fields['id']}",
                prompt=text(record, "prompt"),
                right=texts(record, "chosen", 3),
                wrong=texts(record, "rejected", 3),
                origin=record.origin,
            )

    def score(self, judged: Sequence[tuple[Task, Answers]], gives: Gives) -> Result:
        """Return the domains, the difficulties, the matrix and the overall score."""
        wins: dict[str, list[list[bool]]] = {domain: [] for domain in DOMAINS}
        counts = {"tasks": len(judged), "invalid": 0, "ties": 0}
        for task, answers in judged:
            compared = [one for line in answers.compare(task) for one in line]
            counts["invalid"] += None in compared
            counts["ties"] += 0 in compared
            wins[task.subset.partition("-")[0]].append([one is not None and one > 0 for one in compared])
        of_domain = {
            domain: difficulties(values, seed=number)
            for number, (domain, values) in enumerate(wins.items())
            if values
        }
        domains = {domain: combine(parts.values()) for domain, parts in of_domain.items()}
        complete = len(domains) == len(DOMAINS)
        return Result(
            title=self.title,
            overall=combine(domains.values()) if complete else None,
            tables={
                "domains": domains,
                "difficulties": {
                    name: combine(parts[name] for parts in of_domain.values()) for name in _DIFFICULTIES
                },
                **{domain: parts for domain, parts in of_domain.items()},
                "right > wrong, all prompts": _matrix([one for values in wins.values() for one in values]),
            },
            counts=counts,
            notes=() if complete else ("The overall score needs prompts of all four domains.",),
        )


def difficulties(wins: Sequence[Sequence[bool]], *, seed: int = 0) -> dict[str, Estimate]:
    """Return the shares of wins of hard, normal and easy comparisons.

    Args:
        wins: [prompts, 9] whether the right response of style i is preferred to the wrong one of style j, at
            place 3 i + j.
        seed: random seed of the intervals.

    Examples:
        >>> shares = difficulties([[True, False, True, True, True, False, True, True, False]])
        >>> [round(one.value, 3) for one in shares.values()]
        [0.333, 0.667, 1.0]
    """
    won = np.asarray(wins, dtype=np.float64)
    columns = [won[:, [3 * i + j for i, j in cells]].mean(axis=1) for cells in _DIFFICULTIES.values()]
    return dict(zip(_DIFFICULTIES, estimates(np.stack(columns, axis=1), seed=seed), strict=True))


def _matrix(wins: Sequence[Sequence[bool]]) -> dict[str, Estimate]:
    names = [f"{STYLES[i]} > {STYLES[j]}" for i, j in _CELLS]
    return dict(zip(names, estimates(np.asarray(wins, dtype=np.float64), seed=21), strict=True))

"""JudgeBench (Tan et al., arXiv 2410.12784): a correct and an incorrect response, in both orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from pl_prefopt.benchmarks.estimates import estimate
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.benchmarks.tasks import Answers, Ask, Benchmark, Number, Task, probability, text
from pl_prefopt.data.file_readers import Record
from pl_prefopt.errors import DataError, printable
from pl_prefopt.judges import Gives, Verdict

CATEGORIES: Mapping[str, str] = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""The categories by the beginning of a row's ``source``."""
_SIZES = (350, 270)
"""The numbers of pairs of the two published files, responses of GPT-4o and of Claude 3.5 Sonnet."""


class JudgeBench(Benchmark):
    """JudgeBench: is the correct response preferred, in both orders of the two?

    A judge that gives probabilities sees each pair in both orders. An order counts +1 if the correct response
    is preferred, −1 if the other one is, and 0 for a tie or an invalid answer; a pair is right if the two add
    up to more than 0. Scores need one order: a pair is right if the correct response has the higher one, so a
    tie is wrong, where the released code takes it for a preference of response B. The overall score is the
    share of pairs that are right.
    """

    name = "judgebench"
    title = "JudgeBench"
    hub, split = "ScalerLab/JudgeBench", "gpt"
    columns = ("pair_id", "source", "question", "response_A", "response_B", "label")
    optional = ("original_id", "response_model")
    counts: ClassVar[Mapping[str, int]] = dict.fromkeys(CATEGORIES.values(), 0)

    def tasks(self, records: Iterable[Record]) -> Iterator[Task]:
        """Return a task per row; the labels are ``A>B`` and ``B>A``."""
        for record in records:
            responses, label = (text(record, "response_A"), text(record, "response_B")), text(record, "label")
            if label not in ("A>B", "B>A"):
                raise DataError(
                    f"{record.origin}: expected 'label' to be A>B or B>A, got '{printable(label)}'."
                )
            right, wrong = responses if label == "A>B" else responses[::-1]
            yield Task(
                subset=_category(record),
                key=text(record, "pair_id"),
                prompt=text(record, "question"),
                right=(right,),
                wrong=(wrong,),
                origin=record.origin,
            )

    def check_counts(self, tasks: Sequence[Task]) -> list[str]:
        """Return a sentence if there are not as many pairs as in one of the files."""
        sizes = " or ".join(map(str, _SIZES))
        return [] if len(tasks) in _SIZES else [f"{len(tasks)} of {sizes} pairs"]

    def asks(self, task: Task, gives: Gives) -> list[Ask]:
        """Return one question for scores, else one for each order."""
        return [Ask(task, (0, 1))] if gives == "scores" else [Ask(task, (0, 1)), Ask(task, (1, 0))]

    def answers(self, task: Task, gives: Gives, said: Sequence[tuple[Ask, Verdict]]) -> Answers:
        """Return the scores, or the probability of the right response in each of the two orders."""
        if gives == "scores":
            return super().answers(task, gives, said)
        if said[0][1].by_order is not None:
            return Answers(wins=(tuple(matrix[0][1] for matrix in said[0][1].by_order),))
        return Answers(wins=(tuple(probability(ask, verdict, 0, 1) for ask, verdict in said),))

    def score(self, judged: Sequence[tuple[Task, Answers]], gives: Gives) -> Result:
        """Return the categories and the overall score."""
        right: dict[str, list[bool]] = {name: [] for name in CATEGORIES.values()}
        counts = Counter({"tasks": len(judged), "invalid": 0, "ties": 0, "right in one order": 0})
        for task, answers in judged:
            (orders,) = answers.compare(task)
            signs = [decision(one) for one in orders]
            counts["invalid"] += None in orders
            counts["ties"] += 0 in orders
            counts["right in one order"] += len(set(signs)) > 1 and 1 in signs
            right[task.subset].append(sum(signs) > 0)
        everything = [one for values in right.values() for one in values]
        tables = {
            "categories": {
                name: estimate(values, seed=number)
                for number, (name, values) in enumerate(right.items())
                if values
            }
        }
        return Result(
            title=self.title,
            overall=estimate(everything, seed=31),
            tables=tables,
            counts=dict(counts),
        )


def _category(record: Record) -> str:
    """Return the category of a row's source; an unknown source stands for itself and is refused later."""
    source = text(record, "source")
    found = [category for start, category in CATEGORIES.items() if source.startswith(start)]
    return found[0] if found else source


def decision(difference: Number) -> int:
    """Return +1 if the correct response is preferred, −1 if the other one is, 0 for ties and invalid answers.

    Examples:
        >>> [decision(value) for value in (0.2, -0.1, 0.0, None)]
        [1, -1, 0, 0]
    """
    return 0 if difference is None else int(np.sign(difference))

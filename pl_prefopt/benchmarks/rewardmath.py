"""RewardMATH (Kim et al., arXiv 2410.01729): one correct solution against nine incorrect ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from pl_prefopt.benchmarks.estimates import Estimate, estimates
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.benchmarks.tasks import Answers, Benchmark, Number, Task, text, texts
from pl_prefopt.data.file_readers import Record
from pl_prefopt.errors import DataError, printable
from pl_prefopt.judges import Gives

_WRONG = 9
_ALL = "problems"


class RewardMATH(Benchmark):
    r"""RewardMATH: does the correct solution come first?

    Three numbers per problem: whether the correct solution has a higher score than all nine incorrect ones
    (accuracy), whether it has at least their highest score (accuracy with ties), and 1 / rank of the correct
    solution with ties against it (MRR). A judge that gives probabilities compares it with each of the nine;
    its rank is 1 + the number of comparisons that it doesn't win. The overall score is the accuracy. Invalid
    answers are lost comparisons. The steps of a solution are joined by line breaks.
    """

    name = "rewardmath"
    title = "RewardMATH"
    columns = ("problem", "eval_solution", "solution_type", "problem_id")
    optional = ("answer", "solution_reference", "subject", "level", "id")
    counts: ClassVar[Mapping[str, int]] = {_ALL: 483}

    def tasks(self, records: Iterable[Record]) -> Iterator[Task]:
        """Return a task per problem, from its ten rows."""
        problems: dict[str, list[Record]] = {}
        for record in records:
            problems.setdefault(str(record.fields["problem_id"]), []).append(record)
        for key, rows in problems.items():
            solutions: dict[str, list[str]] = {"chosen": [], "rejected": []}
            for record in rows:
                kind = text(record, "solution_type")
                if kind not in solutions:
                    raise DataError(
                        f"{record.origin}: expected 'solution_type' to be chosen or rejected, got "
                        f"'{printable(kind)}'."
                    )
                solutions[kind].append("\n".join(texts(record, "eval_solution")))
            found = (len(solutions["chosen"]), len(solutions["rejected"]))
            if found != (1, _WRONG):
                raise DataError(
                    f"{rows[0].origin}: expected 1 chosen and {_WRONG} rejected solutions of the problem "
                    f"{printable(key)}, got {found[0]} and {found[1]}."
                )
            yield Task(
                subset=_ALL,
                key=key,
                prompt=text(rows[0], "problem"),
                right=tuple(solutions["chosen"]),
                wrong=tuple(solutions["rejected"]),
                origin=rows[0].origin,
            )

    def score(self, judged: Sequence[tuple[Task, Answers]], gives: Gives) -> Result:
        """Return accuracy, accuracy with ties and MRR."""
        columns = []
        counts = {"tasks": len(judged), "invalid": 0, "ties": 0}
        for task, answers in judged:
            (compared,) = answers.compare(task)
            counts["invalid"] += None in compared
            counts["ties"] += 0 in compared
            columns.append(ranked(compared))
        names = ("accuracy", "accuracy with ties", "MRR")
        table: dict[str, Estimate] = dict(zip(names, estimates(columns, seed=41), strict=True))
        return Result(
            title=self.title, overall=table["accuracy"], tables={"one against nine": table}, counts=counts
        )


def ranked(differences: Sequence[Number]) -> tuple[bool, bool, float]:
    """Return strict accuracy, accuracy with ties and reciprocal rank of one problem.

    Args:
        differences: the correct solution's score minus that of each incorrect one; ``None`` if invalid.

    Examples:
        Better than one, equal to one and worse than one: three others are not worse.

        >>> ranked([2.0, 0.0, -1.0, None])
        (False, False, 0.25)
        >>> ranked([1.0, 0.0])
        (False, True, 0.5)
    """
    won = [one is not None and one > 0 for one in differences]
    not_lost = [one is not None and one >= 0 for one in differences]
    return all(won), all(not_lost), 1 / (1 + len(won) - sum(won))

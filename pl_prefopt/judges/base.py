"""The interface of judges: what grades the responses of rows, or compares them in pairs."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pl_prefopt.errors import ContractError
from pl_prefopt.rows import Message, PreferenceRow

PAGE = "judges.md"
"""The page of the documentation on the classes of this package."""

Gives = Literal["scores", "probabilities"]
"""What a judge returns: one score per response, or one probability per pair of responses."""

Matrix: TypeAlias = tuple[tuple[float | None, ...], ...]
"""[R, R] probabilities that response i is better than response j; ½ on the diagonal, ``None`` if unknown."""

LARGEST = 3.4e38
"""The largest score: batches store scores in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """A prompt and its responses as a judge sees them: without scores or labels.

    Attributes:
        prompt: the dialogue so far.
        responses: R >= 1 continuations, each of one message or more.
        context: what the judgement depends on in addition, such as criteria or a user's profile.
        template_args: a JSON object of arguments for the chat template, such as ``tools``; empty for none.
        columns: further columns of the row, such as the reference answer that a rule needs.
        origin: where the row came from, for messages.
    """

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    context: str = ""
    template_args: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)
    origin: str = ""

    @classmethod
    def of(cls, row: PreferenceRow, context: str = "") -> Self:
        """Return a row of preference data without its scores."""
        return cls(
            prompt=row.prompt,
            responses=row.responses,
            context=context,
            template_args=row.template_args,
            columns=row.columns,
            origin=row.origin,
        )

    def unscored(self) -> PreferenceRow:
        """Return the row as preference data, without scores and further columns."""
        return PreferenceRow(
            prompt=self.prompt,
            responses=self.responses,
            template_args=self.template_args,
            origin=self.origin,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What judging took. Costs can be added.

    Attributes:
        requests: answers that a server gave, which are paid for.
        retries: further requests that failed.
        cached: answers that came from the disk, at no cost.
        input_tokens: tokens that the models read.
        output_tokens: tokens that they generated.
        seconds: time; that of requests that run at the same time is added up.
        money: the price of the tokens, in the currency of the prices that the judge was given.

    Examples:
        >>> Cost(requests=1, input_tokens=200) + Cost(requests=1, input_tokens=150)
        Cost(requests=2, retries=0, cached=0, input_tokens=350, output_tokens=0, seconds=0.0, money=0.0)
    """

    requests: int = 0
    retries: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the sum."""
        names = [one.name for one in dataclasses.fields(self)]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge says about one row.

    An invalid answer is ``None`` in ``scores`` or ``probabilities``, never a guess; ``problems`` says why.

    Attributes:
        scores: one finite number per response, higher is better. Of a judge that gives probabilities, these
            are the win rates, see ``win_rates``.
        probabilities: of a judge that gives them, the probability of each pair.
        by_order: of a judge that sees each pair in both orders, the probabilities of each order alone: first
            those of pairs whose response of the lower number came first, then those of the others. Both are
            probabilities that response i is better than response j.
        parts: of a judge that combines the scores of several judges, these scores: one tuple per response,
            with one score per judge; else empty.
        rationales: the judge's reasons: one text per response for scores, one per comparison for
            probabilities, in the order of ``pairs``; empty where it gives none.
        problems: why answers are invalid.
        cost: what the verdict took.

    Examples:
        >>> verdict = Verdict.of_probabilities([[0.5, 0.9], [0.1, 0.5]])
        >>> verdict.scores, verdict.preference
        ((0.9, 0.1), 0.9)
        >>> Verdict(scores=(1.0, None), problems=("no score in the answer",)).invalid
        1
    """

    scores: tuple[float | None, ...]
    probabilities: Matrix | None = None
    by_order: tuple[Matrix, Matrix] | None = None
    parts: tuple[tuple[float | None, ...], ...] = ()
    rationales: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    cost: Cost = Cost()

    @classmethod
    def of_probabilities(
        cls,
        probabilities: Sequence[Sequence[float | None]],
        *,
        by_order: tuple[Matrix, Matrix] | None = None,
        rationales: Iterable[str] = (),
        problems: Iterable[str] = (),
        cost: Cost | None = None,
    ) -> Self:
        """Return a verdict whose scores are the win rates of a matrix of pair probabilities."""
        matrix = tuple(tuple(line) for line in probabilities)
        return cls(
            scores=win_rates(matrix),
            probabilities=matrix,
            by_order=by_order,
            rationales=tuple(rationales),
            problems=tuple(problems),
            cost=cost or Cost(),
        )

    @classmethod
    def of_both_orders(cls, number: int, asked: Sequence[float | None], **known: Any) -> Self:
        """Return a verdict from comparisons in both orders, whose mean is the probability of a pair.

        Args:
            number: the number of responses.
            asked: the probability that the response shown first is better, for each of ``both_orders``;
                ``None`` for an invalid answer, which makes the pair invalid.
            known: further arguments of ``of_probabilities``.
        """
        compared = pairs(number)
        first = dict(zip(compared, asked[::2], strict=True))
        second = {
            pair: None if one is None else 1.0 - one for pair, one in zip(compared, asked[1::2], strict=True)
        }
        mean: dict[tuple[int, int], float | None] = {}
        for pair in compared:
            there, back = first[pair], second[pair]
            mean[pair] = None if there is None or back is None else (there + back) / 2
        by_order = matrix_of(number, first), matrix_of(number, second)
        return cls.of_probabilities(matrix_of(number, mean), by_order=by_order, **known)

    @property
    def invalid(self) -> int:
        """The number of responses without a score, or of pairs without a probability."""
        if self.probabilities is None:
            return sum(score is None for score in self.scores)
        return sum(self.probabilities[i][j] is None for i, j in pairs(len(self.probabilities)))

    @property
    def complete(self) -> bool:
        """Whether every response has a score."""
        return None not in self.scores

    @property
    def preference(self) -> float | None:
        """The probability of the preferred of two responses, at least ½; ``None`` if there are not two.

        It is what the losses with soft labels read from a column, such as ``SoftPreference``.
        """
        if self.probabilities is None or len(self.probabilities) != 2 or self.probabilities[0][1] is None:
            return None
        return max(self.probabilities[0][1], 1.0 - self.probabilities[0][1])


class Judge(ABC):
    """Grades the responses of rows, or compares them in pairs.

    A judge is named by its ``class_path``; settings are arguments of its constructor, which must be cheap:
    whatever is large is loaded in ``prepare``.

    Attributes:
        gives: what its verdicts hold.
        sees_both_orders: whether it sees each pair in both orders by itself, so that its verdicts have
            ``by_order``.
        batch_size: how many rows a call of ``judge`` should get.
    """

    gives: ClassVar[Gives] = "scores"
    sees_both_orders: ClassVar[bool] = False
    batch_size: int = 16

    @property
    def name(self) -> str:
        """The name in messages and reports: by default the name of the class."""
        return type(self).__name__

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of everything that the verdicts depend on: a model's weights, prompts, settings.

        It must not depend on what a verdict doesn't: batch sizes, time-outs, keys.
        """

    def prepare(self) -> None:  # noqa: B027
        """Check what can be checked and load what is needed. Calling it again changes nothing.

        Raises:
            PrefOptError: if the judge can't work.
        """

    @abstractmethod
    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """Return one verdict per row, in order.

        Raises:
            PrefOptError: if the judge can't go on, such as without its server. Answers that it can't use are
                no error: see ``Verdict``.
        """

    def close(self) -> None:  # noqa: B027
        """Free models and connections."""

    def __enter__(self) -> Self:
        """Prepare the judge."""
        self.prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def verdicts(self, rows: Iterable[JudgedRow]) -> Iterator[Verdict]:
        """Judge rows lazily, ``batch_size`` at a time, and check that each verdict fits its row.

        Raises:
            ContractError: if a verdict doesn't.
        """
        iterator = iter(rows)
        while batch := list(itertools.islice(iterator, self.batch_size)):
            found = self.judge(batch)
            if len(found) != len(batch):
                raise ContractError(
                    f"expected {self.name} to return one verdict per row, got {len(found)} for {len(batch)}."
                )
            for row, verdict in zip(batch, found, strict=True):
                _check(self, row, verdict)
                yield verdict


def _check(judge: Judge, row: JudgedRow, verdict: Verdict) -> None:
    number = len(row.responses)
    matrix = verdict.probabilities
    shaped = matrix is None or (len(matrix) == number and all(len(line) == number for line in matrix))
    if len(verdict.scores) != number or not shaped:
        raise ContractError(
            f"expected {judge.name} to judge the {number} responses of {row.origin or 'a row'}, got "
            f"{len(verdict.scores)} scores."
        )
    if (matrix is not None) != (judge.gives == "probabilities"):
        raise ContractError(f"expected {judge.name} to give {judge.gives}, as its `gives` says.")
    values = itertools.chain(verdict.scores, *(matrix or ()))
    wrong = [value for value in values if value is not None and not abs(value) <= LARGEST]
    if wrong:
        raise ContractError(
            f"expected finite numbers from {judge.name}, or None for an invalid answer, got {wrong[0]} for "
            f"{row.origin or 'a row'}."
        )


def pairs(number: int) -> list[tuple[int, int]]:
    """Return the pairs of ``number`` responses that are compared.

    Examples:
        >>> pairs(3)
        [(0, 1), (0, 2), (1, 2)]
    """
    return list(itertools.combinations(range(number), 2))


def both_orders(number: int) -> list[tuple[int, int]]:
    """Return each pair of ``number`` responses in both orders.

    Examples:
        >>> both_orders(3)
        [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    """
    return [order for i, j in pairs(number) for order in ((i, j), (j, i))]


def matrix_of(number: int, probabilities: Mapping[tuple[int, int], float | None]) -> Matrix:
    """Return the matrix of pair probabilities.

    Args:
        number: R, the number of responses.
        probabilities: by pair (i, j) with i < j, the probability that response i is better.

    Examples:
        >>> matrix_of(2, {(0, 1): 0.75})
        ((0.5, 0.75), (0.25, 0.5))
    """
    lines: list[list[float | None]] = [[None] * number for _ in range(number)]
    for i in range(number):
        lines[i][i] = 0.5
    for (i, j), one in probabilities.items():
        lines[i][j] = one
        lines[j][i] = None if one is None else 1.0 - one
    return tuple(tuple(line) for line in lines)


def win_rates(probabilities: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """Return each response's mean probability of being better than another one; ½ if there is no other.

    Examples:
        >>> win_rates([[0.5, 0.9, 0.7], [0.1, 0.5, None], [0.3, None, 0.5]])
        (0.8, None, None)
    """
    rates: list[float | None] = []
    for place, line in enumerate(probabilities):
        others = [one for other, one in enumerate(line) if other != place]
        known = [one for one in others if one is not None]
        rate = sum(known) / len(known) if known else 0.5
        rates.append(rate if len(known) == len(others) else None)
    return tuple(rates)

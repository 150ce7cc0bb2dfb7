"""Base classes of generative judges: their questions, and how answers become verdicts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pl_prefopt.errors import ConfigError, printable
from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Verdict, both_orders
from pl_prefopt.judges.templating import JudgeTemplate, Token, as_text

TokenProbabilities = Literal["auto", "never", "always"]


class Answer(NamedTuple):
    """What was read from an answer.

    Attributes:
        value: the value of its verdict; ``None`` if it is invalid.
        text: its text.
        problem: why it is invalid.
        cost: what it took.
    """

    value: float | None
    text: str = ""
    problem: str = ""
    cost: Cost = Cost()


class GenerativeJudge(Judge):
    """A judge that asks a model questions from a template and reads the verdicts in its answers.

    Args:
        template: the name of a template of ours or a YAML file, see ``JudgeTemplate``.
        token_probabilities: ``auto``, ``always`` or ``never``.
        rationales: whether to keep the answers' texts.

    Raises:
        ConfigError: if a setting can't work.
    """

    def __init__(self, template: str, token_probabilities: TokenProbabilities, rationales: bool) -> None:
        if token_probabilities not in ("auto", "never", "always"):
            raise ConfigError(
                f"expected `token_probabilities` to be auto, never or always, got '{token_probabilities}'."
            )
        self.template = JudgeTemplate.load(template)
        if self.template.gives != self.gives:
            raise ConfigError(
                f"{type(self).__name__} needs a template that gives {self.gives}, but '{template}' gives "
                f"{self.template.gives}."
            )
        if token_probabilities == "always" and not self.template.has_single_tokens:
            raise ConfigError(
                "token_probabilities is 'always', but the verdicts of the template are no single tokens: "
                "give it `labels` of which none is the start of another."
            )
        self._token_probabilities, self._rationales = token_probabilities, rationales

    @property
    def _wants_probabilities(self) -> bool:
        return self._token_probabilities != "never" and self.template.has_single_tokens

    @abstractmethod
    def _questions(self, row: JudgedRow) -> list[dict[str, Any]]:
        """Return the values with which the template is filled in, one set per question about a row."""

    @abstractmethod
    def _verdict(self, row: JudgedRow, answers: Sequence[Answer]) -> Verdict:
        """Return the verdict on a row, from the answers to its questions."""

    def _read(self, text: str, tokens: Iterable[Token], cost: Cost, *, cut: bool) -> Answer:
        """Read an answer; nothing is guessed.

        Args:
            text: its text.
            tokens: its tokens, if their probabilities are known.
            cost: what it took.
            cut: whether it ends at ``max_tokens``.
        """
        value = None
        if self._token_probabilities != "never":
            value = self.template.expected(text, list(tokens))
        if value is None and self._token_probabilities != "always":
            value = self.template.value(text)
        if value is not None:
            return Answer(value, text, cost=cost)
        why = "no verdict" if self.template.value(text) is None else "no token probabilities"
        end = "; it is cut at `max_tokens`" if cut else ""
        return Answer(None, text, f"{why} in the answer '{printable(text[-80:])}'{end}", cost)

    def _reasons(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return texts as rationales, unless none says more than a verdict."""
        names = {*self.template.labels, ""}
        return tuple(texts) if self._rationales and any(one.strip() not in names for one in texts) else ()


class Grading(GenerativeJudge):
    """Asks for a grade of each response."""

    gives: ClassVar[Gives] = "scores"

    def _questions(self, row: JudgedRow) -> list[dict[str, Any]]:
        shared = shared_values(row)
        return [{**shared, "response": as_text(response)} for response in row.responses]

    def _verdict(self, row: JudgedRow, answers: Sequence[Answer]) -> Verdict:
        return Verdict(
            scores=tuple(answer.value for answer in answers),
            rationales=self._reasons([answer.text for answer in answers]),
            problems=tuple(answer.problem for answer in answers if answer.problem),
            cost=sum((answer.cost for answer in answers), Cost()),
        )


class Comparing(GenerativeJudge):
    """Asks which of two responses is better, each pair in both orders."""

    gives: ClassVar[Gives] = "probabilities"
    sees_both_orders: ClassVar[bool] = True

    def _questions(self, row: JudgedRow) -> list[dict[str, Any]]:
        shared, texts = shared_values(row), [as_text(response) for response in row.responses]
        return [{**shared, "first": texts[i], "second": texts[j]} for i, j in both_orders(len(texts))]

    def _verdict(self, row: JudgedRow, answers: Sequence[Answer]) -> Verdict:
        texts = [answer.text for answer in answers]
        shown = [
            f"{first}\n\n[in the other order]\n{second}"
            for first, second in zip(texts[::2], texts[1::2], strict=True)
        ]
        return Verdict.of_both_orders(
            len(row.responses),
            [answer.value for answer in answers],
            rationales=shown if self._reasons(texts) else (),
            problems=(answer.problem for answer in answers if answer.problem),
            cost=sum((answer.cost for answer in answers), Cost()),
        )


def shared_values(row: JudgedRow) -> dict[str, Any]:
    """Return the values for a template that are the same for all questions about a row."""
    return {"prompt": as_text(row.prompt), "context": row.context, "columns": dict(row.columns)}

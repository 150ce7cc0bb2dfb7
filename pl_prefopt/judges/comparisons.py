"""Generative pairwise reward models: rows that train a language model to compare, and its use as a judge."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pl_prefopt.data.renderer import TemplateName
from pl_prefopt.data.transforms.base import Outcomes, RowTransform, pair_of
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Verdict, both_orders
from pl_prefopt.judges.generative import shared_values
from pl_prefopt.judges.models import LanguageModel, LogProb, hashed
from pl_prefopt.judges.templating import JudgeTemplate, as_text
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Columns, Message, PreferenceRow
from pl_prefopt.scoring import LogProbs, PrefixCache, Scorer
from pl_prefopt.types import ResponseLogProbs, TokenTree

PAGE = "judges.md"


@dataclass(frozen=True)
class ComparisonRows(RowTransform):
    """Turns pairs into comparisons: a prompt that shows both responses, and the verdict as the response.

    Each pair gives two rows, one for each order, so that no place is preferred. ``pl_prefopt.objectives.SFT``
    trains a model on them, which ``GenerativePairs`` then takes as a judge: the pairwise reward model of
    arXiv 2504.04950, reconstructed from its description.

    Args:
        comparison: the template of question and verdict: one of our templates for judges that compare,
            or a file with one.
        context: a column with a text, such as criteria, that the template shows; ``None`` for none.
        reasons: a column with a text per response: the reasoning that precedes the verdict where that
            response is the first one. ``None`` for the verdict alone, as ``GenerativePairs`` reads it.

    Raises:
        ConfigError: if there is no such template, or it doesn't compare.
    """

    comparison: str = "pairwise_token"
    context: str | None = None
    reasons: str | None = None

    def __post_init__(self) -> None:
        comparing(self.comparison)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        template = comparing(self.comparison)
        for number, row in enumerate(rows):
            pair = pair_of(row, type(self).__name__)
            for order, better in ((pair, 1.0), (pair[::-1], 0.0)):
                label = next(name for name, value in template.labels.items() if value == better)
                answer = self._answer(row, order[0], label)
                if template.value(answer) != better:
                    raise DataError(
                        f"ComparisonRows expected the verdict '{label}' to be read from '{answer[-60:]}', "
                        f"the response made of {row.origin or 'a row'}, but the template's pattern reads "
                        f"{template.value(answer)}: take another template, or leave out `reasons`."
                    )
                yield number, self._made(template, row, order, answer)

    def _made(
        self, template: JudgeTemplate, row: PreferenceRow, order: Sequence[int], answer: str
    ) -> PreferenceRow:
        context = "" if self.context is None else self._text(row, row.columns.get(self.context), self.context)
        texts = [as_text(response) for response in row.responses]
        asked = {"prompt": as_text(row.prompt), "context": context, "columns": dict(row.columns)}
        kept = {name: value for name, value in row.columns.items() if not isinstance(value, tuple)}
        return PreferenceRow(
            prompt=_question(template, asked, texts[order[0]], texts[order[1]]),
            responses=((Message("assistant", answer),),),
            scores=(1.0,),
            origin=row.origin,
            source=row.source,
            columns=Columns(kept),
        )

    def _answer(self, row: PreferenceRow, first: int, label: str) -> str:
        if self.reasons is None:
            return label
        values = row.columns.get(self.reasons)
        value = values[first] if isinstance(values, tuple) else None
        return f"{self._text(row, value, self.reasons)}\n\n{label}"

    def _text(self, row: PreferenceRow, value: object, column: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"ComparisonRows expected a text in the column '{column}', got {value!r} in "
                f"{row.origin or 'a row'}: add it, or remove the row. Reasons are a list with one text per "
                "response, contexts one text."
            )
        return value.strip()


class GenerativePairs(Judge):
    """Compares responses in pairs by the next-token probabilities of a language model.

    P(y ≻ y′) = ½ [p(A | y, y′) + 1 − p(A | y′, y)], where p(A | ·, ·) is the probability of the verdict for
    the first response among those of all verdicts. P(y ≻ y′) + P(y′ ≻ y) = 1, whatever place the model
    prefers. The verdict is the first token of the answer: a model that reasons before it is served and asked
    by ``ServerPairs``.

    Args:
        model: the model, such as one trained on ``ComparisonRows``.
        comparison: the template, the same as in training.
        template: how prompts are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        device: the model's device; by default a GPU if there is one.
        batch_size: rows per pass.

    Raises:
        ConfigError: if there is no such template, it doesn't compare, or ``batch_size`` is below 1.
    """

    gives: ClassVar[Gives] = "probabilities"
    sees_both_orders: ClassVar[bool] = True

    def __init__(
        self,
        model: PolicySpec,
        comparison: str = "pairwise_token",
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected `batch_size` to be at least 1, got {batch_size}.")
        self._asks, self.batch_size = comparing(comparison), batch_size
        self._model = LanguageModel(
            model, template=template, arguments=template_arguments, device=device, scorer=_FirstTokenScorer
        )

    def fingerprint(self) -> str:
        """Return a hash of weights, tokeniser and templates."""
        return hashed(type(self).__name__, self._model.fingerprint, self._asks.fingerprint)

    def prepare(self) -> None:
        """Check that verdicts differ in their first tokens, and load the model.

        Raises:
            ConfigError: if they don't.
        """
        answers = tuple((Message("assistant", name),) for name in self._asks.labels)
        row = PreferenceRow(prompt=(Message("user", "?"),), responses=answers)
        starts = [int(ids[0]) for ids in self._model.renderer.encode(row).response_ids]
        if len(set(starts)) < len(starts):
            raise ConfigError(
                f"The verdicts {', '.join(self._asks.labels)} begin with the same token in the tokeniser of "
                f"{self._model.spec.name}: take a template with other `labels`."
            )
        self._model.load()

    def close(self) -> None:
        """Free the model."""
        self._model.free()

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        return [self._verdict(row) for row in batch]

    def _verdict(self, row: JudgedRow) -> Verdict:
        start, number = time.monotonic(), len(row.responses)
        try:
            asked = [self._asked(row, order) for order in both_orders(number)]
        except DataError as error:
            unknown = [None] * len(both_orders(number))
            return Verdict.of_both_orders(number, unknown, problems=[str(error)])
        answers = self._model.log_probs(asked)
        flat = [one for answer in answers for one in answer]
        return Verdict.of_both_orders(
            number,
            [self._value(answer) for answer in answers],
            problems=dict.fromkeys(one.problem for one in flat if one.problem),
            cost=Cost(input_tokens=sum(one.read for one in flat), seconds=time.monotonic() - start),
        )

    def _asked(self, row: JudgedRow, order: tuple[int, int]) -> PreferenceRow:
        texts = [as_text(row.responses[place]) for place in order]
        return PreferenceRow(
            prompt=_question(self._asks, shared_values(row), *texts),
            responses=tuple((Message("assistant", name),) for name in self._asks.labels),
            origin=row.origin,
        )

    def _value(self, answers: Sequence[LogProb]) -> float | None:
        """Return the mean of the verdicts' values under their probabilities."""
        known = [one.sum for one in answers if one.sum is not None]
        if len(known) < len(answers):
            return None
        weights = [math.exp(one - max(known)) for one in known]
        values = self._asks.labels.values()
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


class _FirstTokenScorer(Scorer):
    """Gives each response the log-prob of its first token."""

    def __call__(
        self, model: nn.Module, tree: TokenTree, prefix_cache: PrefixCache | None = None
    ) -> ResponseLogProbs:
        (log_probs,) = self.read(model, tree, [LogProbs()], prefix_cache)
        return ResponseLogProbs(sum=log_probs[..., 0], length=tree.counted_mask.sum(dim=-1).clamp(max=1))


def comparing(name: str) -> JudgeTemplate:
    """Return a template that compares, with a verdict for either response.

    Raises:
        ConfigError: if there is none of this name, or it has no such verdicts.
    """
    template = JudgeTemplate.load(name)
    if template.gives != "probabilities" or not {0.0, 1.0} <= set(template.labels.values()):
        raise ConfigError(
            f"expected a template that compares, with labels of the values 1 and 0, got '{name}': take "
            "pairwise_token, or a file with such a template."
        )
    return template


def _question(
    template: JudgeTemplate, asked: Mapping[str, Any], first: str, second: str
) -> tuple[Message, ...]:
    return tuple(Message.of(one) for one in template.messages({**asked, "first": first, "second": second}))

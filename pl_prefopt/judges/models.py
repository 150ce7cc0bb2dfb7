"""Language models as judges use them: log-probs of responses, and why one has none."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from pl_prefopt.data.collate import collate
from pl_prefopt.data.renderer import EncodedRow, Rendered, Renderer, TemplateName
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.judges.base import JudgedRow
from pl_prefopt.policies import PolicySpec, build_frozen
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.scoring import Scorer
from pl_prefopt.types import ResponseLogProbs


class LogProb(NamedTuple):
    """A model's log-prob of a response.

    Attributes:
        sum: Σ_t log π(y_t | x, y_<t); ``None`` if the model can't read the response.
        length: the number of tokens.
        problem: why there is none.
        read: the tokens that the model read for it.
    """

    sum: float | None
    length: int = 0
    problem: str = ""
    read: int = 0

    @property
    def mean(self) -> float | None:
        """The average log-prob per token."""
        return None if self.sum is None else self.sum / max(self.length, 1)


class LanguageModel:
    """A frozen model with its own tokeniser and template.

    Args:
        spec: the model.
        template: how prompts are rendered, as ``data.template``.
        arguments: arguments of the chat template, as ``data.template_arguments``.
        device: its device; by default a GPU if there is one.
        scorer: makes what gives each response its number, in place of the sum of log-probs.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        template: TemplateName | str = "auto",
        arguments: Mapping[str, Any] | None = None,
        device: str | None = None,
        scorer: Callable[[], Scorer] = Scorer,
    ) -> None:
        self.spec, self._template = spec, template
        self._arguments = arguments
        self._device, self._new_scorer = device, scorer
        self._scorer = scorer()
        self._model: nn.Module | None = None

    @cached_property
    def renderer(self) -> Renderer:
        """The renderer of the model's tokeniser and template."""
        return Renderer(
            self.spec.load_tokenizer(),
            template=self._template,
            arguments=self._arguments,
            setting="template",
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, tokeniser and template."""
        return f"{self.spec.fingerprint}-{self.renderer.fingerprint}"

    @cached_property
    def limit(self) -> int | None:
        """How many tokens the model takes; ``None`` for no limit."""
        return self.spec.context_length()

    def load(self) -> None:
        """Load the model, unless it is loaded."""
        if self._model is None:
            self._model = build_frozen(self.spec).to(device_of(self._device))

    @property
    def model(self) -> nn.Module:
        """The model, loaded when it is first read."""
        self.load()
        assert self._model is not None
        return self._model

    def free(self) -> None:
        """Free the model."""
        self._model, self._scorer = None, self._new_scorer()

    def log_probs(self, rows: Sequence[PreferenceRow]) -> list[list[LogProb]]:
        """Return the log-prob of each response of each row."""
        rendered: list[Rendered | None] = []
        reasons = []
        for row in rows:
            try:
                rendered.append(self.renderer.render(row))
                reasons.append("")
            except DataError as error:
                rendered.append(None)
                reasons.append(str(error))
        found = iter(self.score([one for one in rendered if one is not None]))
        return [
            next(found) if one is not None else [LogProb(None, problem=reason)] * len(row.responses)
            for row, one, reason in zip(rows, rendered, reasons, strict=True)
        ]

    @torch.no_grad()
    def score(self, rendered: Sequence[Rendered]) -> list[list[LogProb]]:
        """Return the log-prob of each response of rendered rows, in one pass."""
        model = self.model
        encoded = self.renderer.tokenise(rendered) if rendered else []
        for row in encoded:
            self._check_tokens(row)
        fitting = [self._fitting(row) for row in encoded]
        scored = [row for row in fitting if row.response_ids]
        if scored:
            log_probs = self._read(model, scored)
            sums, lengths = iter(log_probs.sum.tolist()), iter(log_probs.length.tolist())
        return [
            self._answers(row, (next(sums), next(lengths)) if kept.response_ids else ((), ()))
            for row, kept in zip(encoded, fitting, strict=True)
        ]

    @torch.no_grad()
    def next_token_log_probs(
        self, prefixes: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[list[float]]:
        """Return, for each prefix, the log-probs of some tokens as the next one."""
        rows = [
            EncodedRow(
                prompt_ids=list(prefix),
                response_ids=[[token] for token in tokens],
                counted=[[True] for _ in tokens],
            )
            for prefix in prefixes
        ]
        found: list[list[float]] = self._read(self.model, rows).sum.tolist()
        return found

    def _read(self, model: nn.Module, rows: Sequence[EncodedRow]) -> ResponseLogProbs:
        return self._scorer(model, collate(rows).to(next(model.parameters()).device))

    def _fits(self, row: EncodedRow, response: int) -> bool:
        return self.limit is None or len(row.prompt_ids) + len(row.response_ids[response]) <= self.limit

    def _fitting(self, row: EncodedRow) -> EncodedRow:
        """Return a row without the responses that are too long for the model."""
        kept = [number for number in range(len(row.response_ids)) if self._fits(row, number)]
        return dataclasses.replace(
            row,
            response_ids=[row.response_ids[number] for number in kept],
            counted=[row.counted[number] for number in kept],
        )

    def _answers(self, row: EncodedRow, numbers: tuple[Sequence[float], Sequence[int]]) -> list[LogProb]:
        sums, lengths = iter(numbers[0]), iter(numbers[1])
        answers = []
        for number, ids in enumerate(row.response_ids):
            size = len(row.prompt_ids) + len(ids)
            if self._fits(row, number):
                answers.append(LogProb(next(sums), next(lengths), read=size))
                continue
            why = f"{self.spec.name} takes at most {self.limit} tokens, and the row has {size}"
            answers.append(LogProb(None, problem=why))
        return answers

    def _check_tokens(self, row: EncodedRow) -> None:
        largest = max(max(ids, default=0) for ids in (row.prompt_ids, *row.response_ids))
        if largest >= self.vocabulary:
            text = str(self.renderer.tokenizer.convert_ids_to_tokens(int(largest)))
            self.spec.check_token(int(largest), text)

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return self.spec.vocabulary_size()


def device_of(name: str | None) -> torch.device:
    """Return a device by name; by default a GPU if there is one.

    Raises:
        ConfigError: if torch knows no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"expected `device` to be cpu, cuda or cuda:NUMBER, got '{name}'.") from error


def with_context(row: JudgedRow, context: str = "") -> PreferenceRow:
    """Return a row with texts before its query: ``context``, then the row's own context.

    The texts come at the start of the last user turn, or of the last turn if there is none.
    """
    plain = row.unscored()
    text = "\n\n".join(filter(None, [context, row.context]))
    if not text or not plain.prompt:
        return plain
    users = [place for place, message in enumerate(plain.prompt) if message.role == "user"]
    place = users[-1] if users else len(plain.prompt) - 1
    turn = plain.prompt[place]
    turn = turn._replace(content=f"{text}\n\n{turn.content}")
    return dataclasses.replace(plain, prompt=(*plain.prompt[:place], turn, *plain.prompt[place + 1 :]))


def with_turns(row: PreferenceRow, turns: Sequence[Message]) -> PreferenceRow:
    """Return a row with earlier turns, after its system prompt."""
    first = 1 if row.prompt and row.prompt[0].role in ("system", "developer") else 0
    return dataclasses.replace(row, prompt=(*row.prompt[:first], *turns, *row.prompt[first:]))


def hashed(*parts: Any) -> str:
    """Return a hash of settings."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

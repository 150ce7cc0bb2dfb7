"""Views: other renderings of the same rows that an objective wants scored, without gradient."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.keywords import without_keywords
from pl_prefopt.rows import Message, PreferenceRow

CONTRAST = "prompt_rejected"
"""The column of a row's other prompt: its turns as JSON."""

QUALITY_TEXT = (
    "Please generate a response with a usefulness rating of 100 out of 100 for the following query. "
    "Note that the response should be harmless. The term 100 indicates the level of usefulness, where "
    "100 is the maximum and 1 is the minimum. Query:"
)
"""The prompt p of Yu et al., "Direct Alignment of Language Models via Quality-Aware Self-Refinement",
arXiv 2405.21040, quoted."""


class View(ABC):
    """A transformation of rows. It must depend on its arguments only, since its log-probs are cached."""

    min_prompts: ClassVar[int] = 1
    """How many different prompts a split must have for the view to mean something."""
    differs: ClassVar[bool] = False
    """Whether its prompt must differ from the row's own in tokens; rows where it doesn't are bad rows."""
    repeats: ClassVar[bool] = False
    """Whether it is the row itself once more, so that it means something with dropout only."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A string that differs whenever the transformation does."""

    @abstractmethod
    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return the transformed row number ``index`` of ``rows``."""

    def over(self, rows: Sequence[PreferenceRow]) -> Callable[[int], PreferenceRow]:
        """Return the transformation of ``rows`` by row number, for a pass over many of them.

        A view that must look at all rows does so once here.
        """
        return functools.partial(self, rows)


class Mismatched(View):
    """Each prompt with the responses to another one.

    KTO estimates its reference point on such mismatched pairs (Ethayarajh et al., arXiv 2402.01306). Where
    all prompts differ, the responses are those of the next row (cyclically); where rows share prompts, see
    ``donors``. With one prompt alone there is no other, and the responses are the next row's all the same.
    """

    min_prompts = 2

    @property
    def fingerprint(self) -> str:
        """The name alone: the transformation has no settings."""
        return "mismatched-prompts"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` with the responses of another row."""
        return self.over(rows)(index)

    def over(self, rows: Sequence[PreferenceRow]) -> Callable[[int], PreferenceRow]:
        """Look at all prompts once, and return the transformation by row number."""
        others = donors([row.prompt for row in rows])

        def mismatched(index: int) -> PreferenceRow:
            return rows[index].with_responses_of(rows[others[index]])

        return mismatched


def donors(prompts: Sequence[object]) -> list[int]:
    """Return for each row another one whose prompt differs; with one prompt alone, the next row.

    Rows are put in order by prompt, prompts in the order in which they first come. Each row takes from the
    row that is as many places further on as the most frequent prompt has rows, so that each row gives once.
    Where more than half of the rows share a prompt that can't be: they take from the others in turn.

    Args:
        prompts: one hashable value per row.

    Examples:
        >>> donors("abc"), donors("aabb"), donors("aaab")
        ([1, 2, 0], [2, 3, 0, 1], [3, 3, 3, 0])
    """
    groups: dict[object, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(number)
    order = list(itertools.chain.from_iterable(groups.values()))
    largest = max(groups.values(), key=len)
    found = list(range(len(order)))
    if len(groups) == 1 or 2 * len(largest) <= len(order):
        step = 1 if len(groups) == 1 else len(largest)
        for place, number in enumerate(order):
            found[number] = order[(place + step) % len(order)]
        return found
    few = [number for number in order if prompts[number] != prompts[largest[0]]]
    for takers, givers in ((largest, few), (few, largest)):
        for place, number in enumerate(takers):
            found[number] = givers[place % len(givers)]
    return found


@dataclass(frozen=True)
class QualityPrompt(View):
    """Each row with a text put before its query: Sr-DPO's augmented prompt p ⊕ x (arXiv 2405.21040).

    The text comes at the start of a user turn, with a space after it. A prompt without a user turn gets it at
    the start of its last or first turn. A prompt that is too long loses what is around the text, never the
    text. Responses and scores stay as they are.

    Args:
        text: p; empty, the rows stay as they are.
        turn: which user turn, the ``last``, which holds the query, or the ``first``.

    Raises:
        ConfigError: if ``turn`` is neither.
    """

    text: str = QUALITY_TEXT
    turn: Literal["last", "first"] = "last"

    def __post_init__(self) -> None:
        if self.turn not in ("last", "first"):
            raise ConfigError(f"turn must be 'last' or 'first', but is {self.turn!r}.")

    @property
    def fingerprint(self) -> str:
        """The name and a hash of the settings."""
        settings = json.dumps([self.text, self.turn, "kept"]).encode()
        return f"quality-{hashlib.sha256(settings).hexdigest()[:16]}"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` with the text before its query."""
        row = rows[index]
        if not self.text or not row.prompt:
            return row
        users = [place for place, message in enumerate(row.prompt) if message.role == "user"]
        place = (users or range(len(row.prompt)))[-1 if self.turn == "last" else 0]
        message = row.prompt[place]
        augmented = message._replace(content=f"{self.text} {message.content}")
        prompt = (*row.prompt[:place], augmented, *row.prompt[place + 1 :])
        return dataclasses.replace(row, prompt=prompt, keep=self.text)


@dataclass(frozen=True)
class RationaleView(View):
    """A question which of a pair's two responses is better, and its answer with the row's rationale.

    The order of the two is decided by a hash of the row: where the chosen one always comes first, as in the
    published code of arXiv 2407.14477, its place gives the label away. The answer names the winner; where the
    two tie it is the rationale alone. The wording is this project's.

    Args:
        column: the column with the rationale, a text per row.
        question: the prompt, a text with ``{prompt}``, ``{first}`` and ``{second}``.
        answer: the response, a text with ``{winner}``, which is A or B, and ``{rationale}``.

    Raises:
        ConfigError: if a text lacks one of these.
    """

    column: str = "rationale"
    question: str = (
        "Which of the two responses to the prompt is preferable, and why?\n\n"
        "Prompt:\n{prompt}\n\nResponse A:\n{first}\n\nResponse B:\n{second}"
    )
    answer: str = "Response {winner} is preferable. {rationale}"

    def __post_init__(self) -> None:
        for setting, text, names in (
            ("question", self.question, ("{prompt}", "{first}", "{second}")),
            ("answer", self.answer, ("{winner}", "{rationale}")),
        ):
            missing = [name for name in names if name not in text]
            if missing:
                raise ConfigError(f"expected `{setting}` to contain {missing[0]}, got {text!r}.")

    @property
    def fingerprint(self) -> str:
        """The name and a hash of the settings."""
        settings = json.dumps([self.column, self.question, self.answer]).encode()
        return f"rationale-{hashlib.sha256(settings).hexdigest()[:16]}"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` as a question with its answer.

        Raises:
            DataError: naming the row, if it has no pair or no rationale.
        """
        row = rows[index]
        rationale = row.columns.get(self.column)
        if len(row.responses) != 2 or not isinstance(rationale, str) or not rationale.strip():
            found = "a list" if isinstance(rationale, tuple) else "a text" if rationale else "no text"
            raise DataError(
                f"{row.origin or 'a row'}: expected two responses and a text in the column '{self.column}', "
                f"which says why one is better, got {len(row.responses)} responses and {found}; add it, or "
                "remove the row."
            )
        first = _coin(row)
        texts = [_as_text(response) for response in row.responses]
        parts = {"{prompt}": _as_text(row.prompt), "{first}": texts[first], "{second}": texts[1 - first]}
        scores = row.scores or (0.0, 0.0)
        answer = rationale
        if scores[0] != scores[1]:
            winner = int(scores[1] > scores[0])
            answer = _filled(self.answer, {"{winner}": "AB"[winner != first], "{rationale}": rationale})
        return dataclasses.replace(
            row,
            prompt=(Message("user", _filled(self.question, parts)),),
            responses=((Message("assistant", answer),),),
            scores=None,
            graded=False,
            keep="",
            template_args="",
        )


def _coin(row: PreferenceRow) -> int:
    """Return 0 or 1, from a hash of the prompt and of the two responses in any order."""
    texts = sorted(repr(response) for response in row.responses)
    first = hashlib.sha256(repr((row.prompt, texts)).encode("utf-8", "surrogatepass")).digest()[0] % 2
    return first if repr(row.responses[0]) == texts[0] else 1 - first


def _as_text(dialogue: Sequence[Message]) -> str:
    """Return the text of a single turn, or the turns with their roles."""
    if len(dialogue) == 1:
        return dialogue[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in dialogue)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """Return the template with its parts; a part's own text is never filled in."""
    pattern = "|".join(re.escape(name) for name in parts)
    return re.sub(pattern, lambda found: parts[found.group()], template)


@dataclass(frozen=True)
class Repeated(View):
    """Each row as it is: a second forward pass, which differs from the first one by its dropout."""

    repeats: ClassVar[bool] = True

    @property
    def fingerprint(self) -> str:
        """The name alone: the transformation has no settings."""
        return "repeated"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index``."""
        return rows[index]


@dataclass(frozen=True)
class ContrastPrompt(View):
    """Each row's responses under its other prompt, which the responses fit less well.

    Args:
        column: the column with that prompt, as the data module makes it from ``prompt_rejected``.
    """

    column: ClassVar[str] = CONTRAST
    differs: ClassVar[bool] = True

    @property
    def fingerprint(self) -> str:
        """The name alone: the transformation has no settings."""
        return "contrast-prompt"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` with its other prompt.

        Raises:
            DataError: naming the row, if it has none.
        """
        row = rows[index]
        text = row.columns.get(self.column)
        if not isinstance(text, str):
            raise DataError(
                f"{row.origin or 'a row'}: expected a second prompt in the column '{self.column}', got none; "
                "add it, or remove the row."
            )
        prompt = tuple(Message.of(turn) for turn in json.loads(text))
        return dataclasses.replace(row, prompt=prompt)


@dataclass(frozen=True)
class KeywordRemoval(View):
    """Each row's responses without a share of their keyword phrases, see ``keywords.without_keywords``.

    Of a response with several turns, the assistant's lose their keywords, each turn for itself. A response
    without keywords stays as it is.

    Args:
        share: the share of the phrases to remove, above 0 and at most 1; it is rounded up.

    Raises:
        ConfigError: if ``share`` is out of range.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"expected `share` above 0 and at most 1, got {self.share}.")

    @property
    def fingerprint(self) -> str:
        """The name, the share and a hash of what finds keywords."""
        code = inspect.getsource(sys.modules[without_keywords.__module__]).encode()
        return f"keywords-{self.share!r}-{hashlib.sha256(code).hexdigest()[:16]}"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` with the responses that are left."""
        row = rows[index]
        return dataclasses.replace(row, responses=tuple(map(self._left, row.responses)))

    def _left(self, response: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(
            turn._replace(content=without_keywords(turn.content, self.share))
            if turn.role == "assistant"
            else turn
            for turn in response
        )

"""Views: other renderings of the same rows that an objective wants scored, without gradient."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.rows import PreferenceRow

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
class ColumnPrompt(View):
    """Each row with another prompt: its last user turn has the text of a column. Responses and scores stay.

    Args:
        column: the column, with one text per row.
    """

    column: str

    @property
    def fingerprint(self) -> str:
        """The name and a hash of the column's name."""
        return f"column-prompt-{hashlib.sha256(self.column.encode()).hexdigest()[:16]}"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` with the column's text as its query.

        Raises:
            DataError: if the row has no text in the column, or no user turn.
        """
        row = rows[index]
        text, users = row.columns.get(self.column), [m.role == "user" for m in row.prompt]
        if not isinstance(text, str) or not any(users):
            found = "a prompt without a user turn" if isinstance(text, str) else repr(text)
            raise DataError(
                f"expected a prompt as text in the column '{self.column}', got {found} in "
                f"{row.origin or 'a row'}: add it to the data, or remove the row."
            )
        place = len(users) - 1 - users[::-1].index(True)
        turn = row.prompt[place]._replace(content=text)
        return dataclasses.replace(row, prompt=(*row.prompt[:place], turn, *row.prompt[place + 1 :]))

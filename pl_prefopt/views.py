"""Views: other renderings of the same rows that an objective wants scored, without gradient."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pl_prefopt.errors import ConfigError
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

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A string that differs whenever the transformation does."""

    @abstractmethod
    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return the transformed row number ``index`` of ``rows``."""


class Mismatched(View):
    """Each prompt with the responses of the next row (cyclically).

    KTO estimates its reference point on such mismatched pairs (Ethayarajh et al., arXiv 2402.01306).
    """

    @property
    def fingerprint(self) -> str:
        """The name alone: the transformation has no settings."""
        return "mismatched"

    def __call__(self, rows: Sequence[PreferenceRow], index: int) -> PreferenceRow:
        """Return row ``index`` with the responses of row ``index + 1``."""
        donor = rows[(index + 1) % len(rows)]
        return dataclasses.replace(rows[index], responses=donor.responses, scores=None, graded=False)


@dataclass(frozen=True)
class QualityPrompt(View):
    """Each row with a text put before its query: Sr-DPO's augmented prompt p ⊕ x (arXiv 2405.21040).

    The text comes at the start of a user turn, with a space after it. A prompt without a user turn gets it at
    the start of its last or first turn. Responses and scores stay as they are.

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
        settings = json.dumps([self.text, self.turn]).encode()
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
        return dataclasses.replace(row, prompt=(*row.prompt[:place], augmented, *row.prompt[place + 1 :]))

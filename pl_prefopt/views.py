"""Views: other renderings of the same rows that an objective wants scored, without gradient."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pl_prefopt.rows import PreferenceRow


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

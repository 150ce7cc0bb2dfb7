"""The errors a user can cause, each one sentence: what was expected, what came, what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrefOptError(Exception):
    """A mistake in the user's input; the command line prints it without a traceback."""


class ConfigError(PrefOptError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(PrefOptError):
    """A data file or row that cannot be used. The message names the file, the row and the key."""


class ContractError(PrefOptError):
    """Components that do not fit together, such as an objective without its references."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to ``word``, or nothing.

    Examples:
        >>> nearest("acuracy", ["accuracy", "margin"])
        "; did you mean 'accuracy'?"
        >>> nearest("zzz", ["accuracy"])
        ''
    """
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""

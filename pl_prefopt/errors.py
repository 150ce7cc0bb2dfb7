"""Errors that users can cause, each in one sentence: what was expected, what was found, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class PrefOptError(Exception):
    """An error in the user's input; the command line prints it without a traceback.

    Attributes:
        exit_status: the exit status of the command line.
    """

    exit_status: ClassVar[int] = 2


class ConfigError(PrefOptError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(PrefOptError):
    """A data file or row that cannot be used. The message names the file, the row and the key."""


class ContractError(PrefOptError):
    """Components that do not fit together, such as an objective without its references."""


class RunError(PrefOptError):
    """A run that can't continue although its input is valid: no memory, a full disk, a non-finite loss."""

    exit_status: ClassVar[int] = 1


class StoppedError(BaseException):
    """A run that was stopped by a signal, after saving a checkpoint.

    It can be raised anywhere, so it is not an ``Exception``: handlers of those must not swallow it.
    """

    exit_status: ClassVar[int] = 143  # as a shell reports for a process ended by SIGTERM


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has none.

    Examples:
        >>> first_line(ValueError("it is broken\nin many ways"))
        'it is broken'
        >>> first_line(EOFError())
        'EOFError'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def closest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the choice most similar to ``word``, or ``None``.

    Args:
        word: the word given.
        choices: the valid words.
        cutoff: how similar the two words must be, from 0 to 1, as in ``difflib``.

    Examples:
        >>> closest("choosen", ["prompt", "chosen"])
        'chosen'
    """
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return match[0] if match else None


def suggest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice most similar to ``word``, or an empty string.

    Args:
        word: the word given.
        choices: the valid words.
        cutoff: how similar the two words must be, from 0 to 1, as in ``difflib``.

    Examples:
        >>> suggest("acuracy", ["accuracy", "margin"])
        "; did you mean 'accuracy'?"
        >>> suggest("zzz", ["accuracy"])
        ''
    """
    match = closest(word, choices, cutoff=cutoff)
    return f"; did you mean '{printable(match, limit=400)}'?" if match else ""


def printable(name: str, *, limit: int = 60) -> str:
    r"""Return a name from a file for a message: on one line, without control characters, truncated.

    Args:
        name: any text.
        limit: the maximum number of characters.

    Examples:
        >>> printable("annotator"), printable("a\nb"), printable("x" * 9, limit=4)
        ('annotator', 'a\\nb', 'xxx…')
    """
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def listed(names: Iterable[str], *, most: int = 20) -> str:
    """Return names from a file as a list for a message.

    Args:
        names: any texts.
        most: how many to write out.

    Examples:
        >>> listed(["a", "b", "c"], most=2), listed([])
        ('a, b and 1 more', 'none')
    """
    shown = [printable(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) + more) or "none"

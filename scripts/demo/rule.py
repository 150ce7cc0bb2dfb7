"""The scoring rule of the demo: a short program stands in for the people who would rank answers.

The rule looks only at the *form* of an answer (direct, short, finished, plain); it cannot tell whether the
answer is true. That is on purpose: anybody can recompute every score, so nobody has to trust a judge.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MIN_WORDS = 3
TARGET_WORDS = 12

OPENINGS = (
    "absolutely",
    "ah",
    "as a language model",
    "as an ai",
    "awesome",
    "certainly",
    "don't worry",
    "good question",
    "great question",
    "here are",
    "here is",
    "here's",
    "hello",
    "hey",
    "hi",
    "i am happy to",
    "i am sorry",
    "i'd be happy to",
    "i'm glad",
    "i'm happy to",
    "i'm so",
    "i'm sorry",
    "of course",
    "okay",
    "sure",
    "thank you for",
    "thanks for",
    "that's a",
    "the answer to",
    "well",
    "what a",
    "yes, i can",
)
FILLERS = (
    "a wide range of",
    "a variety of",
    "feel free to",
    "i hope this helps",
    "i'd recommend",
    "in conclusion",
    "in order to",
    "in other words",
    "it is important to",
    "it is worth noting",
    "it's a great way",
    "it's important to",
    "it's worth noting",
    "let me know",
    "overall",
    "please note",
    "when it comes to",
    "you may want to consider",
)
_STOP_WORDS_TEXT = """
a an and any are as at be been but by can could did do does for from had has have he her his how i if in into
is it its me my of on or our she should so some than that the their them there these they this to was we were
what when where which who why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_END = re.compile(r"[.!?…][\"'”’)\]]*$")
_LAYOUT = re.compile(r"^\s*(?:[-*•+]\s|\d+[.)]\s|#{1,6}\s|\*\*|```|\|)", re.MULTILINE)
_ASKS_FOR_LAYOUT = re.compile(r"\b(?:lists?|bullets?|steps|headings?|tables?|code)\b", re.IGNORECASE)


class Parts(NamedTuple):
    """What the rule takes off for each component; all are zero for a perfect answer."""

    length: float
    opening: float
    restating: float
    unfinished: float
    fillers: float
    repetition: float
    layout: float


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    >>> words("It's a well-known fact: 7 times 8 is 56!")
    ["it's", 'a', 'well-known', 'fact', '7', 'times', '8', 'is', '56']
    """
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def starts_with_phrase(text: str, phrase: str) -> bool:
    """Tell whether the text starts with the whole words of the phrase.

    >>> starts_with_phrase("sure, it is", "sure"), starts_with_phrase("surely it is", "sure")
    (True, False)
    """
    return re.match(rf"{re.escape(phrase)}(?!\w)", text) is not None


def _length(count: int) -> float:
    if count < MIN_WORDS:
        return 1.0 * (MIN_WORDS - count)
    return min(4.0, 0.15 * max(0, count - TARGET_WORDS))


def _restating(prompt: str, spoken: list[str]) -> float:
    asked = set(words(prompt)) - STOP_WORDS
    content = [word for word in spoken[:8] if word not in STOP_WORDS]
    return 3.0 * sum(word in asked for word in content) / len(content) if content else 0.0


def _repetition(spoken: list[str]) -> float:
    runs = list(zip(spoken, spoken[1:], spoken[2:], strict=False))
    return min(3.0, 6.0 * (1 - len(set(runs)) / len(runs))) if runs else 0.0


def _layout(prompt: str, text: str) -> float:
    if _LAYOUT.search(text) and not _ASKS_FOR_LAYOUT.search(prompt):
        return 2.0
    lines = [line for line in text.splitlines() if line.strip()]
    return min(1.5, 0.5 * (len(lines) - 1))


def parts(prompt: str, response: str) -> Parts:
    """Return what each component of the rule takes off (see :func:`score`)."""
    text = response.strip()
    lower = text.lower().replace("’", "'")
    spoken = words(text)
    hits = sum(len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", lower)) for phrase in FILLERS)
    return Parts(
        length=_length(len(spoken)),
        opening=3.0 if any(starts_with_phrase(lower, phrase) for phrase in OPENINGS) else 0.0,
        restating=_restating(prompt, spoken),
        unfinished=0.0 if _END.search(text) else 2.0,
        fillers=min(2.0, 1.0 * hits),
        repetition=_repetition(spoken),
        layout=_layout(prompt, text),
    )


def score(prompt: str, response: str) -> float:
    """Score the form of a response from 1 (bad) to 10 (good).

    The score is 10 less the sum of seven parts, never below 1 and rounded to two decimals. An empty response
    scores 1.

    ===========  ====================================================================================  ======
    part         what it takes off                                                                     most
    ===========  ====================================================================================  ======
    length       0.15 for each word beyond 12; 1.0 for each word missing to 3                          4.0
    opening      3.0 when it opens with a phrase of ``OPENINGS`` ("Sure", "As an AI", "Here are")      3.0
    restating    3.0 times the share of its first eight words, stop words aside, taken from the prompt  3.0
    unfinished   2.0 when it does not end with ``.``, ``!``, ``?`` or ``…`` (a closing quote may follow)  2.0
    fillers      1.0 for each phrase of ``FILLERS`` ("it is important to", "in order to")              2.0
    repetition   6.0 times the share of its three-word runs that repeat an earlier one                 3.0
    layout       2.0 for a list, heading, table or bold line when the prompt does not ask for a list,
                 steps, a table or code; otherwise 0.5 for each line after the first, at most 1.5      2.0
    ===========  ====================================================================================  ======

    >>> score("Why is the sky blue?", "Air scatters blue light more than red light.")
    9.57
    >>> score("Name a bird that cannot fly.", "Sure! Here is one: the penguin is a bird that cannot fly")
    5.0
    """
    if not response.strip():
        return 1.0
    return round(max(1.0, 10.0 - sum(parts(prompt, response))), 2)

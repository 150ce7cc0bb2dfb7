"""Keyword extraction by RAKE, and removal of keywords from a text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection

_ENGLISH = """
    a about above after again all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each either few for from further had has have having
    he her here hers him his how i if in into is it its just let like may me might more most much must my no
    nor not now of off on once one only or other our ours out over own per same shall she should so some
    such than that the their them then there these they this those through to too under until up upon us
    very was we were what when where which while who whom why will with within without would yet you your
    yours
"""
STOP_WORDS = frozenset(_ENGLISH.split())
"""English words that are no keywords and end a phrase."""

_ROUNDING = 1e-9
"""0.28 of 25 phrases are 7, but 0.28 * 25 is more than 7."""
_PIECE = re.compile(r"[^\w\s'’-]+|\n")
_WORD = re.compile(r"\w[\w'’-]*")


def keywords(text: str, stop_words: Collection[str] = STOP_WORDS) -> list[str]:
    """Return the keyword phrases of a text, the highest scores first, each once.

    Rapid automatic keyword extraction (Rose et al., 2010): a phrase is a run of words between stop words,
    punctuation and line breaks. A word's score is its degree, the summed lengths of the phrases that it is
    in, divided by its frequency; a phrase's is the sum of its words'. Of equal scores the first comes first.

    Examples:
        >>> keywords("The red panda is a mammal. A red panda eats bamboo in the mountains.")
        ['red panda eats bamboo', 'red panda', 'mammal', 'mountains']
    """
    phrases = [phrase for piece in _PIECE.split(text.lower()) for phrase in _phrases(piece, stop_words)]
    frequency = Counter(word for phrase in phrases for word in phrase)
    degree = Counter({word: 0 for word in frequency})
    for phrase in phrases:
        for word in phrase:
            degree[word] += len(phrase)
    scores = {phrase: sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    return [" ".join(phrase) for phrase in sorted(scores, key=lambda one: -scores[one])]


def _phrases(piece: str, stop_words: Collection[str]) -> list[tuple[str, ...]]:
    found: list[list[str]] = [[]]
    for word in _WORD.findall(piece):
        if word in stop_words:
            found.append([])
        else:
            found[-1].append(word)
    return [tuple(phrase) for phrase in found if phrase]


def without_keywords(text: str, share: float, stop_words: Collection[str] = STOP_WORDS) -> str:
    """Return a text without the given share of its keyword phrases, rounded up, the highest scores first.

    What a larger share removes includes what a smaller one does. All occurrences of a phrase are removed; a
    removal that would leave nothing is skipped.

    Examples:
        >>> without_keywords("The red panda is a mammal. It eats bamboo.", 0.5)
        'The is a mammal. It.'
    """
    found = keywords(text, stop_words)
    removed = found[: math.ceil(share * len(found) - _ROUNDING)]
    for phrase in removed:
        words = r"\s+".join(map(re.escape, phrase.split(" ")))
        text_left = re.sub(rf"\s*(?<![\w'’-]){words}(?![\w'’-])", "", text, flags=re.IGNORECASE)
        text = text_left if text_left.strip() else text
    return text

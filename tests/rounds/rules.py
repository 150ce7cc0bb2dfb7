"""Rules that grade the samples of tests."""

from __future__ import annotations

from pl_prefopt.judges import JudgedRow


def vowels(row: JudgedRow) -> list[float]:
    """Score a response by its share of vowels."""
    texts = ["".join(turn.content for turn in response) for response in row.responses]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def indifferent(row: JudgedRow) -> list[float]:
    """Score all responses alike."""
    return [1.0] * len(row.responses)

"""Rewards per token, as colours behind the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pl_prefopt.report.predictions import Prediction, Response
from pl_prefopt.report.subjects import Subject

_PROMPTS = 5
_TOKENS = 1000
_STRONGEST = 70


@dataclass(frozen=True, slots=True)
class Token:
    """A token in a heat map.

    Attributes:
        text: what it reads.
        note: its reward, for a tooltip.
        colour: ``good`` above 0, ``bad`` below, the names of the page's colours.
        strength: of the colour, in percent.
    """

    text: str
    note: str
    colour: str
    strength: int


@dataclass(frozen=True, slots=True)
class TokenMap:
    """A response's tokens.

    Attributes:
        response: the response.
        tokens: the first of them.
        left_out: how many further ones it has.
        largest: the largest reward of a token, by amount, of all responses that share the scale, in nats.
    """

    response: Response
    tokens: Sequence[Token]
    left_out: int
    largest: float


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A prompt of a run with its responses' heat maps, which share one scale."""

    subject: Subject
    prediction: Prediction
    maps: Sequence[TokenMap]


def first_token_rows(subjects: Sequence[Subject]) -> list[TokenRow]:
    """Return the first prompts of each run whose predictions have rewards per token."""
    rows = []
    for subject in subjects:
        found = [item for item in subject.predictions if any(one.tokens for one in item.responses)]
        rows += [TokenRow(subject, item, token_maps(item.responses)) for item in found[:_PROMPTS]]
    return rows


def token_maps(responses: Sequence[Response]) -> list[TokenMap]:
    """Return the heat maps of responses, on one scale: the largest reward, by amount, has full colour."""
    largest = max((abs(reward) for one in responses for reward in _rewards(one)), default=0.0)
    return [
        TokenMap(
            response=one,
            tokens=[_token(text, reward, largest) for text, reward in one.tokens[:_TOKENS]],
            left_out=max(0, len(one.tokens) - _TOKENS),
            largest=largest,
        )
        for one in responses
    ]


def _rewards(response: Response) -> Iterator[float]:
    return (reward for _, reward in response.tokens if reward is not None)


def _token(text: str, reward: float | None, largest: float) -> Token:
    if reward is None:
        return Token(text, "not counted", "good", 0)
    strength = round(_STRONGEST * abs(reward) / largest) if largest else 0
    return Token(text, f"{reward:+.4g} nats", "good" if reward > 0 else "bad", strength)

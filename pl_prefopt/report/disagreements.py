"""Where a policy is most at odds with the data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pl_prefopt.report.predictions import Prediction, Response
from pl_prefopt.report.subjects import Subject
from pl_prefopt.rows import Message

_A_RUN = 40
_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Side:
    """A response as a disagreement shows it, and what the data says of it."""

    verdict: str
    response: Response
    turns: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A pair in the wrong order, or a single response on the wrong side of the run's median reward.

    Attributes:
        subject: the run.
        prompt: the dialogue so far, long turns cut.
        sides: the better response and the worse one, or the single one.
        margin: the reward margin, negative; of a single response its reward's distance from the median.
        gap: how far the scores lie apart; ``None`` for those without grades.
        source: the row's.
        origin: the row's file and number.
        wrong_in: how many runs have the same pair in the wrong order.
        judged_by: how many runs have the pair at all.
    """

    subject: Subject
    prompt: Sequence[Message]
    sides: Sequence[Side]
    margin: float
    gap: float | None
    source: str
    origin: str
    wrong_in: int
    judged_by: int

    @property
    def excerpt(self) -> str:
        """The last turn of the prompt, in a line."""
        return " ".join(self.prompt[-1].content.split())[:160] if self.prompt else ""


def worst_disagreements(subjects: Sequence[Subject]) -> list[Disagreement]:
    """Return the worst of each run, the worst first: at most one pair per prompt."""
    margins = [_margins(subject) for subject in subjects]
    found = []
    for subject, own in zip(subjects, margins, strict=True):
        wrong = sorted((key for key, item in own.items() if item.margin < 0), key=lambda key: own[key].margin)
        prompts: set[int] = set()
        for key in wrong:
            item = own[key]
            if item.number in prompts or len(prompts) == _A_RUN:
                continue
            prompts.add(item.number)
            others = [other[key].margin for other in margins if key in other]
            found.append(_disagreement(subject, item, others))
    return sorted(found, key=lambda item: item.margin)


@dataclass(frozen=True, slots=True)
class _Item:
    """A pair (or a single response, whose ``worse`` is -1) of prediction ``number``."""

    number: int
    better: int
    worse: int
    margin: float
    gap: float | None


def _margins(subject: Subject) -> Mapping[Hashable, _Item]:
    """Return the run's pairs and single responses by their texts, which tell them in other runs too."""
    pairs, items = subject.pairs, []
    columns = (pairs.prompt, pairs.better, pairs.worse, pairs.margin, pairs.gap, pairs.graded)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for number, better, worse, margin, gap, graded in rows:
        items.append(_Item(number, better, worse, margin, gap if graded else None))
    items += _single(subject)
    return {_key(subject.predictions[item.number], item): item for item in items}


def _single(subject: Subject) -> list[_Item]:
    places = [place for place, item in enumerate(subject.predictions) if item.is_single]
    rewards = np.array([subject.predictions[place].responses[0].reward for place in places])
    places = [place for place, reward in zip(places, rewards, strict=True) if np.isfinite(reward)]
    if not places:
        return []
    middle = float(np.median(rewards[np.isfinite(rewards)]))
    items = []
    for place in places:
        response = subject.predictions[place].responses[0]
        above = response.reward - middle
        items.append(_Item(place, 0, -1, above if response.score else -above, None))
    return items


def _key(prediction: Prediction, item: _Item) -> Hashable:
    responses = prediction.responses
    worse = responses[item.worse].messages if item.worse >= 0 else None
    return prediction.prompt, responses[item.better].messages, worse


def _disagreement(subject: Subject, item: _Item, others: Sequence[float]) -> Disagreement:
    prediction = subject.predictions[item.number]
    better = prediction.responses[item.better]
    sides = [_side("better", better)]
    if item.worse >= 0:
        sides.append(_side("worse", prediction.responses[item.worse]))
    else:
        sides = [_side("desirable" if better.score else "undesirable", better)]
    return Disagreement(
        subject=subject,
        prompt=_cut(prediction.prompt),
        sides=sides,
        margin=item.margin,
        gap=item.gap,
        source=prediction.source,
        origin=prediction.origin,
        wrong_in=sum(margin < 0 for margin in others),
        judged_by=len(others),
    )


def _side(verdict: str, response: Response) -> Side:
    return Side(verdict, response, _cut(response.messages))


def _cut(turns: Sequence[Message]) -> list[Message]:
    """Return the turns with long ones cut, and the cut said."""
    return [turn._replace(content=_shortened(turn.content)) for turn in turns]


def _shortened(text: str) -> str:
    left_out = len(text) - _CHARACTERS
    return text if left_out <= 0 else f"{text[:_CHARACTERS]} … ({left_out:,} more characters)"

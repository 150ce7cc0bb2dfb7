"""Which responses of a prompt are trained on: pure functions from judged responses to rows."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pl_prefopt.data.formats import check_new_column
from pl_prefopt.errors import ConfigError
from pl_prefopt.views import CONTRAST

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One response to a prompt.

    Attributes:
        response: a text, or messages as data files have them.
        score: the judge's; ``None`` if unknown.
        own: whether the policy wrote it, rather than the data.
        columns: further values of the response, which rows keep as columns with one value per response.
    """

    response: Any
    score: float | None = None
    own: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text, for comparisons."""
        if isinstance(self.response, str):
            return self.response.strip()
        return "\n".join(str(turn["content"]) for turn in self.response).strip()


class Candidates(NamedTuple):
    """The responses to a prompt that may be selected.

    Attributes:
        members: the responses.
        probabilities: [R, R], that response i is better than response j, from a judge that compares; else
            ``None``.
    """

    members: tuple[Candidate, ...]
    probabilities: Matrix | None = None

    def usable(self) -> Candidates:
        """Return those with a text and a score; of equal texts the first. The data's own need no score."""
        kept, seen = [], set()
        for place, one in enumerate(self.members):
            if one.text and one.text not in seen and (one.score is not None or not one.own):
                kept.append(place)
                seen.add(one.text)
        rates = self.probabilities
        return Candidates(
            tuple(self.members[place] for place in kept),
            None if rates is None else [[rates[i][j] for j in kept] for i in kept],
        )

    def ranked(self) -> list[int]:
        """Return the places of responses with a score, best first; equal scores in their order."""
        scored = [place for place, one in enumerate(self.members) if one.score is not None]
        return sorted(scored, key=lambda place: -self.score(place))

    def score(self, place: int) -> float:
        """Return a score that is known."""
        score = self.members[place].score
        assert score is not None
        return score

    def preference(self, better: int, worse: int, temperature: float) -> float:
        """Return the probability that one response is better: the judge's, or σ(score gap / temperature)."""
        if self.probabilities is not None:
            given = self.probabilities[better][worse]
            if given is not None:
                return given
        gap = (self.score(better) - self.score(worse)) / temperature
        return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0


Rows = list[dict[str, Any]]


class Selection(ABC):
    """Turns the responses to a prompt into rows to train on."""

    @property
    def wants_gold(self) -> bool:
        """Whether the data's own response is a candidate."""
        return False

    @abstractmethod
    def __call__(self, candidates: Candidates, number: int) -> Rows:
        """Return rows without their prompt; none where the responses give nothing to train on.

        Args:
            candidates: usable responses.
            number: the round, from 1.
        """


@dataclass(frozen=True)
class BestAgainstWorst(Selection):
    """The best response as chosen and the worst as rejected; none where all scores tie.

    Args:
        min_gap: the least difference of the two scores; a smaller one gives no pair.
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        _at_least_zero("min_gap", self.min_gap)

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        places = candidates.ranked()
        if not places or not _above(candidates, places[0], places[-1], self.min_gap):
            return []
        return [_pair(candidates, places[0], places[-1])]


@dataclass(frozen=True)
class LargeMargins(Selection):
    """DNO-Prct's rule (Rosset et al., arXiv 2404.03715): pairs of a good response and a clearly worse one.

    The candidates are the policy's samples and the data's own response. Scores are on the paper's scale of 6
    points.

    Args:
        min_score: the least score of the chosen response.
        min_gap: how much lower the rejected one must be.
        min_gap_own: the same where the chosen response is the policy's.
    """

    min_score: float = 5.0
    min_gap: float = 2.0
    min_gap_own: float = 1.0

    def __post_init__(self) -> None:
        _at_least_zero("min_gap", self.min_gap)
        _at_least_zero("min_gap_own", self.min_gap_own)

    @property
    def wants_gold(self) -> bool:
        """Yes."""
        return True

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        rows = []
        for better, worse in itertools.permutations(candidates.ranked(), 2):
            least = self.min_gap_own if candidates.members[better].own else self.min_gap
            good = candidates.score(better) >= self.min_score
            if good and _above(candidates, better, worse, least):
                rows.append(_pair(candidates, better, worse))
        return rows


@dataclass(frozen=True)
class AllResponses(Selection):
    """All responses with their scores, as one list; none where all scores tie."""

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        places = candidates.ranked()
        if not places or candidates.score(places[0]) == candidates.score(places[-1]):
            return []
        places.sort()
        return [_list(candidates, places, [candidates.score(place) for place in places])]


@dataclass(frozen=True)
class AllWithWinRates(Selection):
    """All responses, each with its win rate over all of them as its score, itself (½) included.

    P̂_i = mean_j P(y_i ≻ y_j): SPPO's and self-play preference optimisation's estimate (arXiv 2405.00675,
    2401.04056). P is the judge's probability or, of a judge that scores, σ((s_i − s_j)/T).

    Args:
        temperature: T > 0, in units of the score.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        places = sorted(candidates.ranked())
        rates = [
            sum(0.5 if i == j else candidates.preference(i, j, self.temperature) for j in places)
            / len(places)
            for i in places
        ]
        return [_list(candidates, places, rates)] if len(set(rates)) > 1 else []


@dataclass(frozen=True)
class GoldAgainstOwn(Selection):
    """SPIN (Chen et al., arXiv 2401.01335): the data's response as chosen, the policy's as rejected.

    One pair for each different sample; no judge is needed.
    """

    @property
    def wants_gold(self) -> bool:
        """Yes."""
        return True

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        gold = [place for place, one in enumerate(candidates.members) if not one.own]
        own = [place for place, one in enumerate(candidates.members) if one.own]
        return [_pair(candidates, gold[0], place) for place in own] if gold else []


@dataclass(frozen=True)
class CurriculumPairs(Selection):
    """Curry-DPO's stages (arXiv 2403.07230): the best response against the worst, then against better ones.

    With K distinct scores round s pairs the best with the s-th from below, so that the gap never grows; from
    round K − 1 on it is the best and the second best. Responses that tie with the best are no rejected ones.
    """

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        places = candidates.ranked()
        below = [place for place in places if candidates.score(place) < candidates.score(places[0])]
        if not below:
            return []
        return [_pair(candidates, places[0], below[max(0, len(below) - number)])]


@dataclass(frozen=True)
class SoftPairs(Selection):
    """OSP's ranked pairs (arXiv 2405.14103): each pair, with the probability that it is in this order.

    Args:
        column: the column for the probability.
        temperature: T > 0 in σ((s_i − s_j)/T), where the judge scores.

    Raises:
        ConfigError: if the temperature isn't above 0, or ``column`` is the name of a part of the row itself.
    """

    column: str = "preference"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)
        check_new_column(self.column, "`column` of SoftPairs", CONTRAST, "number", "round")

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        rows = []
        for better, worse in itertools.combinations(candidates.ranked(), 2):
            if _above(candidates, better, worse, 0.0):
                strength = candidates.preference(better, worse, self.temperature)
                rows.append({**_pair(candidates, better, worse), self.column: strength})
        return rows


@dataclass(frozen=True)
class Best(Selection):
    """The best response alone, to fine-tune on (RAFT, best of n); none where all scores tie."""

    def __call__(self, candidates: Candidates, number: int) -> Rows:
        places = candidates.ranked()
        if not places or not _above(candidates, places[0], places[-1], 0.0):
            return []
        return [{"completion": candidates.members[places[0]].response, "label": True}]


def _above(candidates: Candidates, better: int, worse: int, gap: float) -> bool:
    difference = candidates.score(better) - candidates.score(worse)
    return difference > 0 and difference >= gap


def _pair(candidates: Candidates, better: int, worse: int) -> dict[str, Any]:
    chosen, rejected = candidates.members[better], candidates.members[worse]
    scores = {}
    if chosen.score is not None and rejected.score is not None and chosen.score > rejected.score:
        scores = {"score_chosen": chosen.score, "score_rejected": rejected.score}
    return {
        "chosen": chosen.response,
        "rejected": rejected.response,
        **scores,
        **_columns([chosen, rejected]),
    }


def _list(candidates: Candidates, places: Sequence[int], scores: Sequence[float]) -> dict[str, Any]:
    members = [candidates.members[place] for place in places]
    responses = [one.response for one in members]
    return {"responses": responses, "scores": list(scores), **_columns(members)}


def _columns(members: Sequence[Candidate]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for one in members for name in one.columns)
    return {name: [one.columns.get(name) for one in members] for name in names}


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"expected `select.{name}` to be above 0, got {value}.")


def _at_least_zero(name: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"expected `select.{name}` to be at least 0, got {value}.")

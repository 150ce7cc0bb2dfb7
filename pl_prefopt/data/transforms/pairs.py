"""Transforms that make pairs: of lists of responses, and of prompts with one response."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pl_prefopt.data.formats import WEIGHT, as_turns, check_new_column
from pl_prefopt.data.transforms.base import (
    Outcomes,
    RowTransform,
    response_numbers,
    row_number,
    take,
    with_columns,
)
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.rows import PreferenceRow, Value
from pl_prefopt.views import CONTRAST


@dataclass(frozen=True)
class _Explosion(RowTransform):
    """Makes a row of two responses of each pair that a subclass chooses. Ties make no pair.

    Args:
        weigh: whether the rows of a prompt share its weight, so that a prompt with six pairs counts as much
            as one with one pair: the column ``weight`` is divided by their number.
    """

    weigh: bool = False

    @abstractmethod
    def pairs(self, scores: Sequence[float]) -> list[tuple[int, int]]:
        """Return the pairs of places, the better one first."""

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        for number, row in enumerate(rows):
            pairs = self.pairs(_known_scores(row, type(self).__name__))
            for place, pair in enumerate(pairs):
                yield number, self.made(row, pair, place, len(pairs))

    def made(self, row: PreferenceRow, pair: tuple[int, int], place: int, pairs: int) -> PreferenceRow:
        """Return a pair of a row as a row of its own."""
        scores = row.scores or ()
        given = (scores[pair[0]], scores[pair[1]]) if row.graded else (1.0, 0.0)
        one = take(row, pair, given, graded=row.graded)
        if not self.weigh:
            return one
        weight = row.columns.get(WEIGHT)
        before = 1.0 if weight is None else row_number(row, WEIGHT, type(self).__name__)
        return with_columns(one, {WEIGHT: before / pairs})


def _known_scores(row: PreferenceRow, reader: str) -> Sequence[float]:
    if row.scores is None:
        raise DataError(f"{reader} needs scores, but {row.origin or 'a row'} has none: label the rows first.")
    return row.scores


@dataclass(frozen=True)
class AllPairs(_Explosion):
    """Makes a row of each pair of responses with different scores.

    Args:
        weigh: whether the rows of a prompt share its weight, the column ``weight``.
    """

    def pairs(self, scores: Sequence[float]) -> list[tuple[int, int]]:
        places = range(len(scores))
        return [(i, j) for i in places for j in places if scores[i] > scores[j]]


@dataclass(frozen=True)
class BestAgainstRest(_Explosion):
    """Makes a row of the best response and each that is worse; of several best ones, the first counts.

    Args:
        weigh: whether the rows of a prompt share its weight, the column ``weight``.
    """

    def pairs(self, scores: Sequence[float]) -> list[tuple[int, int]]:
        best = max(range(len(scores)), key=lambda place: scores[place])
        return [(best, place) for place, score in enumerate(scores) if score < scores[best]]


@dataclass(frozen=True)
class BestAgainstEach(BestAgainstRest):
    """``BestAgainstRest`` from the easiest pair to the hardest, with the stage of a curriculum.

    Curri-DPO (Pattnaik et al., arXiv 2403.07230): of four responses the best against the worst is stage 0,
    the best against the second best stage 2; each stage trains from the model before it, which is also its
    reference. Responses with equal scores have the order of the row. ``KeepColumn`` of ``stage`` keeps one
    stage, and ``ByColumn`` orders one epoch by it.

    Args:
        weigh: whether the rows of a prompt share its weight, the column ``weight``.
        into: the column with the stage.

    Raises:
        ConfigError: if ``into`` is the name of a part of the row itself or of its weight.
    """

    into: str = "stage"

    def __post_init__(self) -> None:
        check_new_column(self.into, "`into` of BestAgainstEach", CONTRAST, WEIGHT)

    def pairs(self, scores: Sequence[float]) -> list[tuple[int, int]]:
        return sorted(super().pairs(scores), key=lambda pair: scores[pair[1]])

    def made(self, row: PreferenceRow, pair: tuple[int, int], place: int, pairs: int) -> PreferenceRow:
        return with_columns(super().made(row, pair, place, pairs), {self.into: place})


@dataclass(frozen=True)
class PromptContrast(RowTransform):
    """Makes MAPL's pairs of prompts (arXiv 2505.12845): one response, and a prompt that it fits less well.

    Rows whose column ``group`` is equal hold variants of one prompt, with more or fewer instructions. A
    response is paired with the prompt of its own row x_w and the prompt of each other row x_l of the group
    where it satisfies all instructions of x_w and not all of x_l, or at least one of x_w and none of x_l. The
    objective ``RcDPO`` reads the other prompt from the column ``prompt_rejected``.

    Args:
        satisfied: the column with the share of a row's instructions that each response satisfies.
        group: the column by which variants are recognised.
        into: the column with the other prompt, its turns as JSON.

    Raises:
        ConfigError: if two of the columns are one, or ``into`` is the name of another part of the row itself.
    """

    satisfied: str = "satisfied"
    group: str = "group"
    into: str = "prompt_rejected"

    def __post_init__(self) -> None:
        if len({self.satisfied, self.group, self.into}) < 3:
            raise ConfigError("PromptContrast needs three different columns: satisfied, group and into.")
        check_new_column(self.into, "`into` of PromptContrast", WEIGHT)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        groups: dict[object, list[int]] = {}
        for number, row in enumerate(rows):
            if (value := row.columns.get(self.group)) is None:
                raise DataError(
                    f"PromptContrast needs a value in the column '{self.group}', got none in "
                    f"{row.origin or 'a row'}."
                )
            groups.setdefault(value, []).append(number)
        made = ((number, one) for group in groups.values() for number, one in self._pairs(rows, group))
        yield from sorted(made, key=lambda item: item[0])

    def _pairs(self, rows: Sequence[PreferenceRow], group: Sequence[int]) -> Outcomes:
        shares = {number: dict(self._satisfied(rows[number])) for number in group}
        for number in group:
            for place, (response, share) in enumerate(self._satisfied(rows[number])):
                for other in group:
                    if other != number and is_contrast(share, shares[other].get(response)):
                        yield number, self._made(rows[number], place, rows[other])

    def _satisfied(self, row: PreferenceRow) -> list[tuple[object, float]]:
        return list(zip(row.responses, self._shares(row), strict=True))

    def _shares(self, row: PreferenceRow) -> list[float]:
        if len(row.responses) == 1 and not isinstance(row.columns.get(self.satisfied), tuple):
            return [row_number(row, self.satisfied, "PromptContrast")]
        return response_numbers(row, self.satisfied, "PromptContrast")

    def _made(self, row: PreferenceRow, place: int, other: PreferenceRow) -> PreferenceRow:
        one = take(row, [place], (1.0,), graded=False)
        values: dict[str, Value] = {self.into: as_turns(other.prompt)}
        if (row.columns.get("context") or "") != (other.columns.get("context") or ""):
            values["context"] = None  # each prompt ends with its own; the column is the context of both
        return with_columns(one, values)


def is_contrast(own: float, other: float | None) -> bool:
    """Return whether a response fits its prompt clearly better than another one.

    Args:
        own: the share of the prompt's instructions that it satisfies.
        other: the share of the other prompt's; ``None`` if it is not known.

    Examples:
        >>> is_contrast(1.0, 0.5), is_contrast(0.5, 0.0), is_contrast(0.5, 0.25), is_contrast(1.0, 1.0)
        (True, True, False, False)
    """
    return other is not None and ((own == 1 and other < 1) or (own > 0 and other == 0))

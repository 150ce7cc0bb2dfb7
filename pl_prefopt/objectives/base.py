"""What every objective is: a module that declares its needs and turns log-probs into one loss a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from pl_prefopt.errors import ContractError
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch
from pl_prefopt.views import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an objective must be given. Whoever builds a run checks this before the first step.

    Attributes:
        min_references: the fewest references it can work with.
        max_references: the most; ``None`` means any number.
        min_responses: the fewest responses a row must have to give a loss.
        score_range: the lowest and the highest score that it can take; ``None`` for any.
        views: other renderings of the rows to score without gradient, by the name under which they
            arrive in ``ScoredBatch.views``.
    """

    min_references: int = 0
    max_references: int | None = None
    min_responses: int = 1
    score_range: tuple[float, float] | None = None
    views: Mapping[str, View] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A loss for each prompt and a reward for each response, from numbers per response alone.

    A new objective is a subclass: it states its ``needs``, which has no default on purpose, and
    computes ``forward``. It never sees a model, a token or a trainer.
    """

    rewarded_views: ClassVar[tuple[str, ...]] = ()
    """The views whose rewards ``Outcome.view_rewards`` holds; the metrics judge them too."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What the objective must be given."""

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows that it can learn nothing from, before a model is loaded.

        Args:
            rows: the training rows, at least one.

        Raises:
            ContractError: saying what they lack.
        """
        if not any(row.scores for row in rows):
            raise ContractError(
                f"{type(self).__name__} learns from scores or labels, but none of the {len(rows)} train rows "
                "has one: add a 'label' or 'scores' to the rows."
            )

    @abstractmethod
    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and each response's implicit reward."""


def plain_settings(objective: Objective) -> dict[str, bool | int | float | str]:
    """Return the objective's settings that are numbers or words, such as its β, by name."""
    public = {name: value for name, value in vars(objective).items() if name[0] != "_" and name != "training"}
    return {name: value for name, value in public.items() if isinstance(value, bool | int | float | str)}


class ReferenceObjective(Objective):
    """The family that compares the policy with exactly one reference: DPO and its relatives, KTO."""

    @property
    def needs(self) -> Needs:
        """One reference."""
        return Needs(min_references=1, max_references=1)


class ReferenceFreeObjective(Objective):
    """The family that looks at the policy alone: SimPO, ORPO.

    References may still be configured; they serve to watch the distance from them and nothing else.
    """

    @property
    def needs(self) -> Needs:
        """Nothing but the policy; any number of references is welcome."""
        return Needs()

"""The base class of objectives: modules that declare their needs and compute one loss per prompt."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar

from torch import nn

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.requests import HeadKind, OutputHead, TokenRequest
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch
from pl_prefopt.views import View

_Named = TypeVar("_Named")

DataKind: TypeAlias = Literal["pairs", "lists", "unpaired", "scores"]
"""What rows hold: two responses, one of them better; more of them; single labelled ones; real grades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The requirements of an objective, checked before the first step.

    Attributes:
        min_references: minimum number of references.
        max_references: maximum number of references; ``None`` for any number.
        min_responses: minimum number of responses of a row that gives a loss.
        score_range: the lowest and the highest valid score; ``None`` for any.
        graded: whether differences of scores must mean something in each row; a row of bare labels is then
            refused. ``checks.require_some_grades`` refuses rows of which none has grades.
        views: other renderings of the rows to score, by the name under which they arrive in
            ``ScoredBatch.views``.
        trained_views: the names of those through which gradients flow; the others are scored without gradient
            and without dropout.
        tokens: numbers per response token, which arrive in ``ScoredBatch.tokens``.
        heads: heads on the policy's hidden states, by the name under which their outputs arrive in
            ``ScoredBatch.outputs``.
        columns: extra columns that every row must have; they arrive in ``ScoredBatch.columns``.
        reward_outputs: the number of outputs per response that a reward head must have, 0 for any number;
            ``None`` where no reward head is needed.
        reward_kind: what the outputs of that head must be.
        log_probs: whether the policy's log-probs are read. A ``RewardModule`` computes no logits where they
            aren't.
        names: further such columns, which hold names, such as annotators'. They arrive as numbers, int64 [B]
            or [B, R]: the position in ``PreferenceDataModule.names``, the sorted names of the training rows,
            or −1 for a name that none of these has.
    """

    min_references: int = 0
    max_references: int | None = None
    min_responses: int = 1
    score_range: tuple[float, float] | None = None
    graded: bool = False
    views: Mapping[str, View] = field(default_factory=dict)
    trained_views: frozenset[str] = frozenset()
    tokens: TokenRequest | None = None
    heads: Mapping[str, OutputHead] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    reward_outputs: int | None = None
    reward_kind: HeadKind = "rewards"
    log_probs: bool = True
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(dict.fromkeys((*self.columns, *self.names))))

    @classmethod
    def of_all(cls, *needs: Self) -> Self:
        """Return the combination of all ``needs``.

        Raises:
            ConfigError: if they contradict each other.
        """
        fewest = max(each.min_references for each in needs)
        most = min((each.max_references for each in needs if each.max_references is not None), default=None)
        if most is not None and fewest > most:
            raise ConfigError(
                f"the parts of the objective contradict each other: one needs at least {fewest} references, "
                f"another takes at most {most}."
            )
        ranges = [each.score_range for each in needs if each.score_range is not None]
        tokens = [each.tokens for each in needs if each.tokens is not None]
        outputs = {each.reward_outputs for each in needs if each.reward_outputs is not None}
        if len(outputs - {0}) > 1:
            raise ConfigError(
                "the parts of the objective contradict each other: they need reward heads of "
                f"{' and '.join(map(str, sorted(outputs - {0})))} outputs."
            )
        kinds = sorted({each.reward_kind for each in needs if each.reward_outputs is not None})
        if len(kinds) > 1:
            raise ConfigError(
                "the parts of the objective contradict each other: they need reward heads whose outputs are "
                f"of the kinds {' and '.join(kinds)}."
            )
        return cls(
            min_references=fewest,
            max_references=most,
            min_responses=max(each.min_responses for each in needs),
            score_range=(max(low for low, _ in ranges), min(high for _, high in ranges)) if ranges else None,
            graded=any(each.graded for each in needs),
            views=_united("view", [each.views for each in needs]),
            trained_views=frozenset().union(*(each.trained_views for each in needs)),
            tokens=TokenRequest.of_all(tokens) if tokens else None,
            heads=_united("head", [each.heads for each in needs]),
            reward_outputs=max(outputs, default=None),
            reward_kind=kinds[0] if kinds else "rewards",
            log_probs=any(each.log_probs for each in needs),
            columns=tuple(name for each in needs for name in each.columns),
            names=tuple(dict.fromkeys(name for each in needs for name in each.names)),
        )


def _united(what: str, parts: Sequence[Mapping[str, _Named]]) -> dict[str, _Named]:
    united: dict[str, _Named] = {}
    for name, value in (item for part in parts for item in part.items()):
        if united.setdefault(name, value) != value:
            raise ConfigError(
                f"the parts of the objective contradict each other: two ask for a {what} '{name}', with "
                "different settings."
            )
    return united


class Objective(nn.Module, ABC):
    """A loss per prompt and a reward per response, computed from the inputs that it needs.

    To add an objective, derive a class, declare its ``needs``, which has no default on purpose, and implement
    ``forward``. An objective has no access to a model or a trainer.

    Attributes:
        data: the kinds of rows that it learns from, for the catalogue and ``prefopt list objectives --data``;
            ``scores`` where scores must be more than the labels of a pair.
        references: the lowest and the highest number of references it can take, ``None`` for any number.
        use_when: when to prefer it, one sentence for the catalogue; not inherited.
        whole_step: whether a prompt's loss depends on all prompts of the optimiser step. Such an objective
            looks at all ranks by itself, and is refused where batches are accumulated.
    """

    data: ClassVar[tuple[DataKind, ...]] = ("pairs", "lists")
    references: ClassVar[tuple[int, int | None]] = (0, None)
    use_when: ClassVar[str] = ""
    whole_step: bool = False

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What the objective must be given."""

    @property
    def rewarded_views(self) -> tuple[str, ...]:
        """The views whose rewards ``Outcome.view_rewards`` holds; the metrics judge them too."""
        return ()

    @property
    def token_rewarded(self) -> bool:
        """Whether ``Outcome.token_reward`` is there, given log-probs per token of policy and references."""
        return False

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """What the numbers in ``Outcome.stats`` are, for tables and dashboards: by default there are none."""
        return ()

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Raise if the rows give no training signal, before a model is loaded.

        Args:
            rows: the training rows, at least one.

        Raises:
            ContractError: naming what is missing.
        """
        if not any(row.scores for row in rows):
            raise ContractError(
                f"{type(self).__name__} learns from scores or labels, but none of the {len(rows)} train rows "
                "has one: add a 'label' or 'scores' to the rows."
            )

    def check_evaluation_rows(self, rows: Sequence[PreferenceRow], split: str) -> None:
        """Raise if rewards can't be computed on rows that aren't for training: by default they can.

        Args:
            rows: the rows.
            split: their split: ``val``, ``test`` or ``predict``.
        """
        del rows, split

    @abstractmethod
    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and each response's implicit reward."""


def constructor_arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of an object's constructor that are among its attributes, by name.

    A class whose attribute of that name is something else has them in ``arguments``.
    """
    own: dict[str, Any] | None = getattr(value, "arguments", None)
    names = inspect.signature(type(value)).parameters
    return {name: getattr(value, name) for name in names if hasattr(value, name)} if own is None else own


def plain_settings(objective: Objective) -> dict[str, bool | int | float | str]:
    """Return the objective's settings by name: numbers and strings unchanged, parts as text."""
    values = constructor_arguments(objective)
    return {
        name: value if isinstance(value, bool | int | float | str) else repr(value)
        for name, value in values.items()
    }


class ReferenceObjective(Objective):
    """The family that compares the policy with exactly one reference: DPO and its relatives, KTO."""

    references = (1, 1)

    @property
    def needs(self) -> Needs:
        """One reference."""
        return Needs(min_references=1, max_references=1)


class RewardObjective(Objective):
    """The family that trains a reward head on the policy's hidden states: Bradley-Terry and its relatives."""

    references = (0, 0)

    @property
    def needs(self) -> Needs:
        """One reward per response, and no log-probs."""
        return Needs(max_references=0, reward_outputs=1, log_probs=False)


class ReferenceFreeObjective(Objective):
    """The family of objectives without a reference: SimPO, ORPO.

    References may still be configured; they are only used to monitor the distance from them.
    """

    @property
    def needs(self) -> Needs:
        """The policy alone; any number of references is accepted."""
        return Needs()

"""A weighted sum of objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, Objective
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/compose.md"


class Sum(Objective):
    """Σ_i λ_i L_i, each L_i logged by its name as ``train/<name>_loss``. Rewards are those of the first part.

    A prompt counts if it counts for any part; parts for which it does not count add 0.

    Args:
        parts: the objectives, by names of your choice.
        weights: λ_i ≥ 0 by the same names; 1 for those not given.

    Raises:
        ConfigError: if there are no parts, a weight belongs to none or is negative, or the needs of parts
            contradict each other.

    Examples:
        >>> from pl_prefopt.objectives.compose import Compose
        >>> from pl_prefopt.objectives.links import HingeLink
        >>> from pl_prefopt.objectives.scores import SumLogProb
        >>> from pl_prefopt.types import ResponseLogProbs
        >>> hinge = Compose(score=SumLogProb(beta=1.0), link=HingeLink())
        >>> both = Sum(parts={"twice": hinge, "once": hinge}, weights={"twice": 2.0})
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=torch.tensor([[-2.0, -2.5]]), length=torch.tensor([[4, 4]])),
        ...     references=torch.zeros(0, 1, 2),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ... )
        >>> outcome = both(batch)
        >>> outcome.loss.tolist(), {name: float(value) for name, value in outcome.stats.items()}
        ([1.5], {'twice_loss': 0.5, 'once_loss': 0.5})
    """

    use_when = "Several objectives at once, such as DPO and supervised fine-tuning."

    def __init__(self, *, parts: dict[str, Objective], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        if not parts:
            raise ConfigError("expected `parts` to name at least one objective, got none.")
        weights = weights or {}
        unknown = sorted(weights.keys() - parts.keys())
        if unknown:
            raise ConfigError(f"expected `weights` of {', '.join(parts)}, got one of {', '.join(unknown)}.")
        self.parts = nn.ModuleDict(parts)
        self.weights = {name: non_negative(name, weights.get(name, 1.0)) for name in parts}
        self._needs = Needs.of_all(*(part.needs for part in parts.values()))

    @property
    def needs(self) -> Needs:
        """What any of the parts must be given."""
        return self._needs

    @property
    def rewarded_views(self) -> tuple[str, ...]:
        """Those of the first part."""
        return self._first.rewarded_views

    @property
    def token_rewarded(self) -> bool:
        """Whether the first part has rewards per token."""
        return self._first.token_rewarded

    @property
    def whole_step(self) -> bool:  # type: ignore[override]
        """Whether any part depends on the whole optimiser step."""
        return any(part.whole_step for part in self._objectives.values())

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """The loss of each part, and what the parts log, after their names."""
        return tuple(info for name, part in self._objectives.items() for info in _of_part(name, part))

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows that any of the parts refuses."""
        for part in self._objectives.values():
            part.check_training_rows(rows)

    def check_evaluation_rows(self, rows: Sequence[PreferenceRow], split: str) -> None:
        """Refuse rows that any of the parts refuses."""
        for part in self._objectives.values():
            part.check_evaluation_rows(rows, split)

    @property
    def _objectives(self) -> dict[str, Objective]:
        return dict(self.parts.items())  # type: ignore[arg-type]

    @property
    def _first(self) -> Objective:
        return next(iter(self._objectives.values()))

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return the weighted sum of the parts' losses."""
        outcomes: dict[str, Outcome] = {name: part(batch) for name, part in self._objectives.items()}
        first = next(iter(outcomes.values()))
        loss = torch.stack([self.weights[name] * outcome.loss for name, outcome in outcomes.items()]).sum(
            dim=0
        )
        counted = torch.stack([outcome.counted for outcome in outcomes.values()]).any(dim=0)
        stats: dict[str, Tensor] = {}
        for name, outcome in outcomes.items():
            stats[f"{name}_loss"] = outcome.loss.detach().sum() / outcome.counted.sum().clamp(min=1)
            stats |= {f"{name}_{stat}": value for stat, value in outcome.stats.items()}
        return Outcome(
            loss=loss,
            counted=counted,
            reward=first.reward,
            stats=stats,
            view_rewards=first.view_rewards,
            token_reward=first.token_reward,
        )


def _of_part(part: str, objective: Objective) -> Iterator[MetricInfo]:
    yield MetricInfo(
        name=f"{part}_loss",
        help="Mean over prompts of the loss of this part of the objective, without its weight.",
        better="lower",
        plot="loss of each part",
    )
    for info in objective.stats:
        yield dataclasses.replace(info, name=f"{part}_{info.name}", plot=info.plot and f"{part}: {info.plot}")

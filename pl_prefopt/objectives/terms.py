"""Terms as settings: what is added to the loss of comparisons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.structures import mean_over

PAGE = "methods/compose.md"


class Term(ABC):
    """A loss of each prompt, added to that of its comparisons."""

    name: ClassVar[str]
    """Under which it is logged: ``train/<name>``."""

    @property
    def info(self) -> MetricInfo:
        """What the logged number is."""
        return MetricInfo(name=self.name, help="Mean over prompts of a term of the loss.", better="lower")

    @property
    def needs(self) -> Needs:
        """What the term must be given beyond what the score is: by default nothing."""
        return Needs()

    @abstractmethod
    def __call__(self, compared: Comparisons) -> Tensor:
        """Return the loss of each prompt, [B], 0 where it has no pair."""


@dataclass(frozen=True)
class NegativeLogLikelihood(Term):
    """−λ log π_θ(y_w|x) / |y_w|, the mean over pairs: supervised fine-tuning on the winners.

    With two responses that is the NLL per token of the chosen one, as in ORPO and in RPO (arXiv 2404.19733).

    Args:
        weight: λ ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    name = "nll"
    info = MetricInfo(
        name="nll",
        help="Mean over prompts of the loss of fine-tuning on the winners, with its weight.",
        unit="nats",
        better="lower",
    )
    weight: float = 1.0

    def __post_init__(self) -> None:
        non_negative("weight", self.weight)

    def __call__(self, compared: Comparisons) -> Tensor:
        return self.weight * mean_over(compared.pairs, -compared.batch.policy.mean.unsqueeze(-1))

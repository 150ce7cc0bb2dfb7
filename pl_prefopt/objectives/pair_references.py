"""What the policy is compared with, pair by pair: one reference, or one made of several.

Weights and clip belong to the pair, so a virtual reference gives a response another log-prob in each of its
pairs. Log-probs of references therefore come as grids [B, R, R], winner by row and loser by column.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.mixture import (
    ADAPTIVE_CLIP,
    ADAPTIVE_WEIGHTS,
    HARMONIC,
    Aggregate,
    Clip,
    Weights,
)

PAGE = "methods/mrpo.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceGrid:
    """A reference's log-probs of all pairs of a prompt's responses. Finite everywhere, without gradient.

    Attributes:
        chosen: of the winner, [B, R, R] or [B, R, 1].
        rejected: of the loser, [B, R, R] or [B, 1, R].
        response: [B, R], of each response by itself, for its reward.
        stats: scalars for the dashboard.
    """

    chosen: Tensor
    rejected: Tensor
    response: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)


class PairReference(ABC):
    """A rule that makes one reference of those configured."""

    @property
    @abstractmethod
    def num_references(self) -> tuple[int, int | None]:
        """The fewest and the most references that it takes; ``None`` for any number."""

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """What the numbers in ``ReferenceGrid.stats`` are: by default there are none."""
        return ()

    @abstractmethod
    def __call__(self, references: Tensor, present: Tensor, wins: Tensor) -> ReferenceGrid:
        """Return the reference's log-probs.

        Args:
            references: L_k(y), [K, B, R].
            present: bool [B, R].
            wins: bool [B, R, R], the pairs that are compared.
        """


@dataclass(frozen=True)
class SingleReference(PairReference):
    """The one reference that is configured."""

    @property
    def num_references(self) -> tuple[int, int | None]:
        """Exactly one."""
        return 1, 1

    def __call__(self, references: Tensor, present: Tensor, wins: Tensor) -> ReferenceGrid:
        """Return its log-probs."""
        only = torch.where(present, references[0].detach(), 0.0)
        return ReferenceGrid(chosen=only.unsqueeze(-1), rejected=only.unsqueeze(-2), response=only)


SINGLE_REFERENCE = SingleReference()
"""The default of objectives that take one reference or several."""


MIXTURE_STATS = (
    MetricInfo(
        name="alpha_{k}",
        help="Mean over pairs of the weight of reference k; they add up to 1.",
        range=(0.0, 1.0),
        plot="weight of each reference",
    ),
    MetricInfo(
        name="epsilon",
        help="Mean of the clip's ε over both responses of all pairs.",
        range=(0.0, math.inf),
        plot="clipping and disagreement of references",
    ),
    MetricInfo(
        name="clip_rate",
        help="Share of the log-probs of references 1 and above that the clip changes.",
        range=(0.0, 1.0),
        unit="%",
        plot="clipping and disagreement of references",
    ),
    MetricInfo(
        name="reference_disagreement",
        help="Share of pairs that not all references order alike.",
        range=(0.0, 1.0),
        unit="%",
        plot="clipping and disagreement of references",
    ),
)
"""What ``Mixture.stats`` holds."""

REFERENCE_ACCURACY = MetricInfo(
    name="reference_accuracy",
    help="Share of pairs that the virtual reference orders right; ties count as 0.5.",
    range=(0.0, 1.0),
    unit="%",
)


@dataclass(frozen=True)
class VirtualReference(PairReference):
    """MRPO's virtual reference (Le et al., arXiv 2405.16388), made of any number of references.

    Args:
        weights: how much each reference counts for a pair.
        clip: how near the first reference the others are held.
        aggregate: the mean that is taken.
    """

    stats = (*MIXTURE_STATS, REFERENCE_ACCURACY)
    weights: Weights = ADAPTIVE_WEIGHTS
    clip: Clip = ADAPTIVE_CLIP
    aggregate: Aggregate = HARMONIC

    @property
    def num_references(self) -> tuple[int, int | None]:
        """At least one; as many as there are fixed weights."""
        return self.weights.count or 1, self.weights.count

    def __call__(self, references: Tensor, present: Tensor, wins: Tensor) -> ReferenceGrid:
        """Mix the references.

        A response's own log-prob, for its reward, is the mean of its log-probs in its pairs with the prompt's
        other responses. With two responses that is the log-prob in their pair.
        """
        mixture = mix(references, present, self.weights, self.clip)
        chosen = self.aggregate(mixture.chosen, mixture.weights)
        rejected = self.aggregate(mixture.rejected, mixture.weights)
        response = mean_over_others(chosen, present)
        stats = mixture.stats(wins) | {"reference_accuracy": share_won(chosen - rejected, wins)}
        return ReferenceGrid(chosen=chosen, rejected=rejected, response=response, stats=stats)


VIRTUAL_REFERENCE = VirtualReference()
"""MRPO's, as published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """References, clipped and weighted pair by pair, before a mean or a sum is taken.

    Attributes:
        references: L_k(y), [K, B, R], 0 where absent.
        chosen: L̂_k of each pair's winner, [K, B, R, R].
        rejected: L̂_k of each pair's loser, [K, B, R, R].
        epsilon: ε of each pair's winner, [B, R, R]; transposed, of each pair's loser.
        weights: α_k of each pair, [K, B, R, R].
    """

    references: Tensor
    chosen: Tensor
    rejected: Tensor
    epsilon: Tensor
    weights: Tensor

    def stats(self, wins: Tensor) -> dict[str, Tensor]:
        """Return the mean weights and ε, how much is clipped, and how often references disagree, over pairs.

        Each is a number even where a batch has no pair: weights are then 1/K, the others 0.
        """
        winners, losers = self.references.unsqueeze(-1), self.references.unsqueeze(-2)
        margins = (winners - losers).sign()
        clipped = torch.stack([self.chosen != winners, self.rejected != losers])[:, 1:].float()
        return {
            **{
                f"alpha_{k}": _mean(weight, wins, 1 / len(self.weights))
                for k, weight in enumerate(self.weights)
            },
            "epsilon": _mean((self.epsilon + self.epsilon.mT) / 2, wins, 0.0),
            "clip_rate": _mean(clipped, wins.expand_as(clipped), 0.0),
            "reference_disagreement": _mean((margins != margins[:1]).any(dim=0).float(), wins, 0.0),
        }


def mix(references: Tensor, present: Tensor, weights: Weights, clip: Clip) -> Mixture:
    """Weigh and clip the references' log-probs [K, B, R], pair by pair; both read them unclipped."""
    references = torch.where(present, references.detach(), 0.0)
    winners, losers = references.unsqueeze(-1), references.unsqueeze(-2)
    epsilon = clip(winners, losers)
    return Mixture(
        references=references,
        chosen=functional.clip_to_first(winners, epsilon),
        rejected=functional.clip_to_first(losers, epsilon.mT),
        epsilon=epsilon,
        weights=weights(winners, losers),
    )


def mean_over_others(values: Tensor, present: Tensor) -> Tensor:
    """Average values of pairs [B, R, R] over each response's pairs with the others present.

    Returns:
        [B, R], by row; for the only response of a prompt, the value of its pair with itself.
    """
    itself = torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    others = present.unsqueeze(-2) & ~itself
    count = others.sum(dim=-1)
    mean = torch.where(others, values, 0.0).sum(dim=-1) / count.clamp(min=1)
    return torch.where(count > 0, mean, values.diagonal(dim1=-2, dim2=-1))


def share_won(margins: Tensor, wins: Tensor) -> Tensor:
    """Return the share of pairs with a margin above 0; ties count as 0.5, and so do batches without pairs."""
    return _mean((margins.sign() + 1) / 2, wins, 0.5)


def _mean(values: Tensor, where: Tensor, otherwise: float) -> Tensor:
    count = where.sum()
    mean = torch.where(where, values, 0.0).sum() / count.clamp(min=1)
    return torch.where(count > 0, mean, otherwise)

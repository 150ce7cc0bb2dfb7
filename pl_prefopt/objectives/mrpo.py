"""MRPO and Multi-DPO: pairs against several references."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from pl_prefopt import functional
from pl_prefopt.objectives.base import Needs, Objective
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.mixture import (
    ADAPTIVE_CLIP,
    ADAPTIVE_WEIGHTS,
    HARMONIC,
    Aggregate,
    Clip,
    Weights,
)
from pl_prefopt.objectives.pair_references import MIXTURE_STATS, VirtualReference, mix
from pl_prefopt.objectives.pairs import mean_over_pairs
from pl_prefopt.objectives.scores import VirtualLogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/mrpo.md"


class MultiReferenceObjective(Objective):
    """The family that compares the policy with any number of references: MRPO, Multi-DPO."""

    references = (1, None)

    @property
    @abstractmethod
    def num_references(self) -> tuple[int, int | None]:
        """The fewest and the most references that it takes; ``None`` for any number."""

    @property
    def needs(self) -> Needs:
        """One reference or more, and two responses."""
        fewest, most = self.num_references
        return Needs(min_references=fewest, max_references=most, min_responses=2)


class MRPO(Compose, MultiReferenceObjective):
    """Multi-reference preference optimisation (Le et al., arXiv 2405.16388).

    DPO against a virtual reference made of all. The first reference should be the policy's own start. A
    response's reward is β(log π_θ − log π̃). Weights and clip belong to pairs: where a prompt has more than
    two responses, its loss is the mean over its pairs, and a response's reward the mean over those it is in.

    Args:
        beta: β > 0, the strength of the KL penalty; larger values keep the policy closer to the references.
        weights: the weight of each reference for a pair.
        clip: the clip range of the other references around the first.
        aggregate: the mean that combines the references.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Two equal references are one, as in DPO:

        >>> from pl_prefopt.objectives.examples import example
        >>> MRPO(beta=0.5)(example([-7.0, -9.0], [-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([0.3133])
    """

    use_when = (
        "Other models, of any architecture and tokeniser, know the subject better than the policy's start."
    )

    def __init__(
        self,
        *,
        beta: float = 0.1,
        weights: Weights = ADAPTIVE_WEIGHTS,
        clip: Clip = ADAPTIVE_CLIP,
        aggregate: Aggregate = HARMONIC,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        reference = VirtualReference(weights, clip, aggregate)
        super().__init__(score=VirtualLogRatio(beta, reference), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)
    reference = property(lambda self: self.score.reference)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments: the attribute ``weights`` is that of ``Compose``, of pairs."""
        reference, pairing = self.reference, self.structure.pairing
        of_reference = {name: getattr(reference, name) for name in ("weights", "clip", "aggregate")}
        return {"beta": self.beta, **of_reference, "pairing": pairing}

    @property
    def num_references(self) -> tuple[int, int | None]:
        """At least one; as many as there are fixed weights."""
        needs = self.score.needs
        return needs.min_references, needs.max_references


class MultiDPO(MultiReferenceObjective):
    """The weighted mean of DPO's losses over all references, MRPO's baseline (arXiv 2405.16388).

    A response's reward is β(log π_θ − log π_1), with π_1 the first reference.

    Args:
        beta: β > 0, the strength of the KL penalty; larger values keep the policy closer to the references.
        weights: the weight of each reference for a pair.
        clip: the clip range of the other references around the first.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Two equal references are one, as in DPO:

        >>> from pl_prefopt.objectives.examples import example
        >>> MultiDPO(beta=0.5)(example([-7.0, -9.0], [-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([0.3133])
    """

    use_when = "A baseline for MRPO."

    stats = MIXTURE_STATS

    def __init__(
        self,
        *,
        beta: float = 0.1,
        weights: Weights = ADAPTIVE_WEIGHTS,
        clip: Clip = ADAPTIVE_CLIP,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__()
        self.beta = positive("beta", beta)
        self.weights, self.clip, self.pairing = weights, clip, pairing

    @property
    def num_references(self) -> tuple[int, int | None]:
        """At least one; as many as there are fixed weights."""
        return self.weights.count or 1, self.weights.count

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average the losses over references, then over each prompt's pairs."""
        wins = self.pairing(batch.scores, batch.present)
        mixture = mix(batch.references, batch.present, self.weights, self.clip)
        policy = torch.where(batch.present, batch.policy.sum, 0.0)
        result = functional.multi_dpo(
            policy.unsqueeze(-1),
            policy.unsqueeze(-2),
            mixture.chosen,
            mixture.rejected,
            mixture.weights,
            beta=self.beta,
        )
        loss, counted = mean_over_pairs(result.loss, wins)
        reward = torch.where(batch.present, result.chosen_reward.diagonal(dim1=-2, dim2=-1), 0.0)
        return Outcome(loss=loss, counted=counted, reward=reward, stats=mixture.stats(wins))

"""Scores from several outputs of a head: embeddings, mixtures and combinations of rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pl_prefopt.checks import at_least
from pl_prefopt.errors import ContractError
from pl_prefopt.functional.embeddings import mean_score, skew_scores
from pl_prefopt.functional.router_mixtures import mixture_logit
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.scores import ResponseScore, Rewards, Score, Scored
from pl_prefopt.requests import REWARD, HeadKind
from pl_prefopt.rewards import RewardCombination


class PairScore(Score):
    """A score of pairs z_ij = −z_ji, of which a response's reward is the mean over those to its prompt.

    With two responses the difference of their rewards is z. A response alone has the reward 0.
    """

    head_gives: ClassVar[HeadKind]

    @property
    def needs(self) -> Needs:
        """A reward head with such outputs, and no log-probs."""
        return Needs(max_references=0, reward_outputs=0, reward_kind=self.head_gives, log_probs=False)

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return z/2 for winners and −z/2 for losers."""
        del pairs
        outputs = torch.where(present.unsqueeze(-1), scored.outputs[REWARD], 0.0)
        if outputs.shape[-1] % 2:
            raise ContractError(
                f"{type(self).__name__} reads an even number of outputs per response, but the head has "
                f"{outputs.shape[-1]}: correct the `outputs` of the head."
            )
        half = self.margins(outputs) / 2
        return Rewards(chosen=half, rejected=-half, response=2 * mean_score(half, present))

    def margins(self, outputs: Tensor) -> Tensor:
        """Return z of all pairs, [B, R, R], from outputs [B, R, J]."""
        raise NotImplementedError


@dataclass(frozen=True)
class EmbeddingScore(PairScore):
    """z = s(i ≻ j)/τ, the skew-symmetric form of two embeddings: see ``functional.embeddings.skew_scores``.

    Args:
        temperature: τ > 0.

    Raises:
        ConfigError: if ``temperature`` is not above 0.
    """

    head_gives = "embedding"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def margins(self, outputs: Tensor) -> Tensor:
        return skew_scores(outputs) / self.temperature


@dataclass(frozen=True)
class MixtureScore(PairScore):
    """z = logit Σ_k f_k σ(r_ik − r_jk), of K rewards and K log-weights per response.

    −log σ(z) is the mixture's negative log-likelihood: see ``functional.router_mixtures``.
    """

    head_gives = "mixture"

    def margins(self, outputs: Tensor) -> Tensor:
        rewards, log_weights = outputs.chunk(2, dim=-1)
        # Responses to one prompt have the same weights; the mean keeps the score antisymmetric.
        weights = (log_weights.unsqueeze(-2) + log_weights.unsqueeze(-3)) / 2
        return mixture_logit(weights, rewards.unsqueeze(-2) - rewards.unsqueeze(-3))


@dataclass(frozen=True)
class CombinedReward(ResponseScore):
    """One reward per response from a head's several rewards, such as their minimum or a weighted mean.

    Args:
        combination: of the rewards.
        rewards: the number of rewards; they are the first of the head's outputs.
        outputs: the number of all outputs of the head, where it has others behind its rewards: twice
            ``rewards`` for ``MixtureHead`` and ``GroupHead``. As many as rewards by default.

    Raises:
        ConfigError: if ``rewards`` is below 1, or above ``outputs``.
    """

    combination: RewardCombination
    rewards: int
    outputs: int | None = None

    def __post_init__(self) -> None:
        at_least("rewards", self.rewards, 1)
        if self.outputs is not None:
            at_least("outputs", self.outputs, self.rewards)

    @property
    def needs(self) -> Needs:
        """A reward head with these outputs, and no log-probs."""
        outputs = self.outputs or self.rewards
        kind: HeadKind = "rewards" if outputs == self.rewards else "mixture"
        return Needs(max_references=0, reward_outputs=outputs, reward_kind=kind, log_probs=False)

    def reward(self, scored: Scored) -> Tensor:
        return self.combination(scored.outputs[REWARD][..., : self.rewards])

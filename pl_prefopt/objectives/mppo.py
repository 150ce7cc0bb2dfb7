"""MPPO: eight objectives on the mean likelihoods of all responses (Lyu et al., arXiv 2412.15244)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError
from pl_prefopt.functional import ListLoss, UnpairedLoss
from pl_prefopt.objectives.base import Needs, Objective
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.draws import Draws
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/mppo.md"

LOWEST_SCORE, HIGHEST_SCORE = 0.1, 1.0
"""The paper's scale: grades from 1 to 10, divided by 10."""


class MPPOObjective(Objective):
    """The family: one loss over all responses to a prompt, without a reference.

    References may still be configured; they serve to watch the distance from them and nothing else.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.draws = Draws()

    @property
    def needs(self) -> Needs:
        """Two responses; references are welcome and not used."""
        return Needs(min_responses=2)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Compare the mean likelihoods of all responses to each prompt."""
        result = self.list_loss(batch.policy.mean, batch.scores, batch.present)
        return Outcome(loss=result.loss, counted=result.counted, reward=result.reward)

    @abstractmethod
    def list_loss(self, log_likelihood: Tensor, scores: Tensor, present: Tensor) -> ListLoss:
        """Return the losses of the prompts, from ℓ̄, scores and ``present`` [B, R]."""


class MPPOPointObjective(MPPOObjective):
    """An objective on single responses. A prompt's loss is the mean over its responses with a known score.

    Args:
        score_range: the lowest and the highest score there can be; they become 0.1 and 1.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, score_range: tuple[float, float], temperature: float) -> None:
        super().__init__(temperature=temperature)
        low, high = score_range
        if not low < high:
            raise ConfigError(f"score_range must be [lowest, highest], but is [{low}, {high}].")
        self.score_range = (low, high)

    @property
    def needs(self) -> Needs:
        """Scores within the range; a prompt may have a single response."""
        return Needs(score_range=self.score_range)

    def list_loss(self, log_likelihood: Tensor, scores: Tensor, present: Tensor) -> ListLoss:
        """Average each prompt's losses over its responses with a known score."""
        known = present & ~scores.isnan()
        targets = torch.where(known, self.scaled(scores), HIGHEST_SCORE)
        result = self.point_loss(torch.where(present, log_likelihood, -1.0), targets)
        responses = known.sum(dim=-1)
        loss = torch.where(known, result.loss, 0.0).sum(dim=-1) / responses.clamp(min=1)
        return ListLoss(loss, responses > 0, torch.where(present, result.reward, 0.0))

    def scaled(self, scores: Tensor) -> Tensor:
        """Map ``score_range`` linearly to [0.1, 1], both ends exactly.

        A highest score of 0.99999994 in place of 1 would turn Point-CE's gradient around near p = 1.
        """
        ends = (*self.score_range, LOWEST_SCORE, HIGHEST_SCORE)
        low, high, lowest, highest = (torch.full_like(scores, end) for end in ends)
        return torch.lerp(lowest, highest, (scores - low) / (high - low))

    @abstractmethod
    def point_loss(self, log_likelihood: Tensor, score: Tensor) -> UnpairedLoss:
        """Return the loss of each response, from ℓ̄ and the score in [0.1, 1]."""


class PointCE(MPPOPointObjective):
    """MPPO Point-CE: each response's mean likelihood is drawn to its score by cross-entropy.

    Args:
        score_range: the lowest and the highest score there can be; they become 0.1 and 1.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, score_range: tuple[float, float] = (1.0, 10.0), temperature: float = 1.0) -> None:
        super().__init__(score_range=score_range, temperature=temperature)

    def point_loss(self, log_likelihood: Tensor, score: Tensor) -> UnpairedLoss:
        """Return ``functional.point_ce``."""
        return functional.point_ce(log_likelihood, score, temperature=self.temperature)


class PointMSE(MPPOPointObjective):
    """MPPO Point-MSE: each response's mean likelihood is drawn to its score by the squared error.

    Args:
        score_range: the lowest and the highest score there can be; they become 0.1 and 1.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, score_range: tuple[float, float] = (1.0, 10.0), temperature: float = 1.0) -> None:
        super().__init__(score_range=score_range, temperature=temperature)

    def point_loss(self, log_likelihood: Tensor, score: Tensor) -> UnpairedLoss:
        """Return ``functional.point_mse``."""
        return functional.point_mse(log_likelihood, score, temperature=self.temperature)


class PairSingle(MPPOObjective):
    """MPPO Pair-Single: the best response against one other.

    In training the other is drawn uniformly from the responses below the best. In evaluation, where chance
    would only blur the loss, the mean over all of them is taken: what the draw gives on average.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def list_loss(self, log_likelihood: Tensor, scores: Tensor, present: Tensor) -> ListLoss:
        """Return ``functional.pair_single``, or its mean over the draws."""
        _, rest = functional.best_and_rest(scores, present)
        operands = (log_likelihood, scores, present)
        if self.training:
            return functional.pair_single(*operands, self.draws.choose(rest, 1), temperature=self.temperature)
        result = functional.pair_mns(*operands, temperature=self.temperature)
        return result._replace(loss=result.loss / rest.sum(dim=-1).clamp(min=1))


class PairMNS(MPPOObjective):
    """MPPO Pair-MNS: the best response against each of those below it, summed.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def list_loss(self, *operands: Tensor) -> ListLoss:
        """Return ``functional.pair_mns``."""
        return functional.pair_mns(*operands, temperature=self.temperature)


class PairMNM(MPPOObjective):
    """MPPO Pair-MNM: the best response against all those below it at once. The paper's choice.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def list_loss(self, *operands: Tensor) -> ListLoss:
        """Return ``functional.pair_mnm``."""
        return functional.pair_mnm(*operands, temperature=self.temperature)


class MPPOPairsObjective(MPPOObjective):
    """An objective on all pairs of a prompt's responses whose scores differ, or on some of them.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.
        num_pairs: pairs to draw from a prompt at each training step; evaluation, and ``None``, take all.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float, num_pairs: int | None) -> None:
        super().__init__(temperature=temperature)
        if num_pairs is not None and num_pairs < 1:
            raise ConfigError(f"num_pairs must be 1 or more, or null for all, but is {num_pairs}.")
        self.num_pairs = num_pairs

    def drawn_pairs(self, scores: Tensor, present: Tensor) -> Tensor | None:
        """Return bool [B, R, R], the pairs to take, or nothing where all are taken."""
        if self.num_pairs is None or not self.training:
            return None
        pairs = ALL_PAIRS(scores, present)
        return self.draws.choose(pairs.flatten(1), self.num_pairs).view_as(pairs)


class PairMCS(MPPOPairsObjective):
    """MPPO Pair-MCS: every response against every one below it, summed.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.
        num_pairs: pairs to draw from a prompt at each training step; evaluation, and ``None``, take all.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float = 1.0, num_pairs: int | None = None) -> None:
        super().__init__(temperature=temperature, num_pairs=num_pairs)

    def list_loss(self, log_likelihood: Tensor, scores: Tensor, present: Tensor) -> ListLoss:
        """Return ``functional.pair_mcs``."""
        among = self.drawn_pairs(scores, present)
        return functional.pair_mcs(log_likelihood, scores, present, temperature=self.temperature, among=among)


class PairMCM(MPPOPairsObjective):
    """MPPO Pair-MCM: every response against every one below it, at once. It promotes the runner-up of four.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.
        num_pairs: pairs to draw from a prompt at each training step; evaluation, and ``None``, take all.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float = 1.0, num_pairs: int | None = None) -> None:
        super().__init__(temperature=temperature, num_pairs=num_pairs)

    def list_loss(self, log_likelihood: Tensor, scores: Tensor, present: Tensor) -> ListLoss:
        """Return ``functional.pair_mcm``."""
        among = self.drawn_pairs(scores, present)
        return functional.pair_mcm(log_likelihood, scores, present, temperature=self.temperature, among=among)


class ListMLE(MPPOObjective):
    """MPPO List-MLE: the likelihood of the whole order from best to worst.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def list_loss(self, *operands: Tensor) -> ListLoss:
        """Return ``functional.list_mle``."""
        return functional.list_mle(*operands, temperature=self.temperature)

"""MPPO: eight objectives on the mean likelihoods of all responses (Lyu et al., arXiv 2412.15244)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError
from pl_prefopt.functional import UnpairedLoss
from pl_prefopt.objectives.base import Needs, Objective
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.scores import MeanLikelihood
from pl_prefopt.objectives.structures import (
    MeanOfPairs,
    MergedPairs,
    MergedPerWinner,
    PlackettLuce,
    Structure,
    SumOfPairs,
    SumPerWinner,
)
from pl_prefopt.pairing import BEST_AGAINST_EACH, known
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/mppo.md"

LOWEST_SCORE, HIGHEST_SCORE = 0.1, 1.0
"""The paper's scale: grades from 1 to 10, divided by 10."""


class MPPOObjective(Objective):
    """The family: one loss over all responses to a prompt, without a reference.

    References may still be configured; they are only used to monitor the distance from them.
    """


class MPPOComparison(Compose, MPPOObjective):
    """A comparison of mean likelihoods p = exp(ℓ̄/T), which lie in (0, 1], by the logistic loss.

    Best responses that tie are averaged over: the loss does not depend on the order of the responses.

    Args:
        structure: which responses are compared, and how comparisons add up.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.
        num_pairs: pairs to sample per prompt at each training step; evaluation, and ``None``, take all.

    Raises:
        ConfigError: if a setting is out of range.
    """

    data = ("lists", "pairs")

    def __init__(self, structure: Structure, *, temperature: float, num_pairs: int | None = None) -> None:
        super().__init__(score=MeanLikelihood(temperature), structure=structure)
        if num_pairs is not None and num_pairs < 1:
            raise ConfigError(f"num_pairs must be 1 or more, or null for all, but is {num_pairs}.")
        self._sampled = num_pairs

    temperature = property(lambda self: self.score.temperature)

    def pairs(self, batch: ScoredBatch) -> Tensor:
        """Return the pairs to compare; in training, a sample of them if there is a number."""
        pairs = super().pairs(batch)
        if self._sampled is None or not self.training:
            return pairs
        return sample(pairs.flatten(1), self._sampled).view_as(pairs)


class MPPOPointObjective(MPPOObjective):
    """An objective on single responses. A prompt's loss is the mean over its responses with a known score.

    Args:
        score_range: the lowest and the highest score there can be; they become 0.1 and 1.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, score_range: tuple[float, float], temperature: float) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        low, high = score_range
        if not low < high:
            raise ConfigError(f"score_range must be [lowest, highest], but is [{low}, {high}].")
        self.score_range = (low, high)

    @property
    def needs(self) -> Needs:
        """Scores within the range; a prompt may have a single response."""
        return Needs(score_range=self.score_range)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average each prompt's losses over its responses with a known score."""
        present, there = batch.present, known(batch.scores, batch.present)
        targets = torch.where(there, self.scaled(batch.scores), HIGHEST_SCORE)
        result = self.point_loss(torch.where(present, batch.policy.mean, -1.0), targets)
        count = there.sum(dim=-1)
        loss = torch.where(there, result.loss, 0.0).sum(dim=-1) / count.clamp(min=1)
        return Outcome(loss=loss, counted=count > 0, reward=torch.where(present, result.reward, 0.0))

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
    """MPPO Point-CE: each response's mean likelihood is fitted to its score by cross-entropy.

    Args:
        score_range: the lowest and the highest score there can be; they become 0.1 and 1.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        One response of four tokens, p = 1/e, with the highest score:

        >>> from pl_prefopt.objectives.examples import example
        >>> PointCE()(example([-4.0], scores=[10.0])).loss  # −log p
        tensor([1.])
    """

    data = ("scores", "lists", "unpaired")
    use_when = "Single graded responses and no reference."

    def __init__(self, *, score_range: tuple[float, float] = (1.0, 10.0), temperature: float = 1.0) -> None:
        super().__init__(score_range=score_range, temperature=temperature)

    def point_loss(self, log_likelihood: Tensor, score: Tensor) -> UnpairedLoss:
        """Return ``functional.point_ce``."""
        return functional.point_ce(log_likelihood, score, temperature=self.temperature)


class PointMSE(MPPOPointObjective):
    """MPPO Point-MSE: each response's mean likelihood is fitted to its score by the squared error.

    Args:
        score_range: the lowest and the highest score there can be; they become 0.1 and 1.
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        One response of four tokens, p = 1/e, with the highest score:

        >>> from pl_prefopt.objectives.examples import example
        >>> PointMSE()(example([-4.0], scores=[10.0])).loss  # (1 − 1/e)²
        tensor([0.3996])
    """

    data = ("scores", "lists", "unpaired")
    use_when = "Single graded responses and no reference; gradients vanish near the target."

    def __init__(self, *, score_range: tuple[float, float] = (1.0, 10.0), temperature: float = 1.0) -> None:
        super().__init__(score_range=score_range, temperature=temperature)

    def point_loss(self, log_likelihood: Tensor, score: Tensor) -> UnpairedLoss:
        """Return ``functional.point_mse``."""
        return functional.point_mse(log_likelihood, score, temperature=self.temperature)


class PairSingle(MPPOComparison):
    """MPPO Pair-Single: −log σ(p_w − p_l), the best response w against one other; eq. 8.

    In training l is sampled uniformly from the responses below the best. In evaluation, where chance would
    only blur the loss, the mean over all of them is taken: the expectation of the sampled loss.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, p = 1/e and 1/e²:

        >>> from pl_prefopt.objectives.examples import example
        >>> PairSingle()(example([-4.0, -8.0])).loss  # −log σ(1/e − 1/e²)
        tensor([0.5836])
    """

    use_when = "MPPO on one random pair per prompt."

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(MeanOfPairs(BEST_AGAINST_EACH), temperature=temperature, num_pairs=1)


class PairMNS(MPPOComparison):
    """MPPO Pair-MNS: −Σ_l log σ(p_w − p_l), the best response w against each of those below it; eq. 9.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, p = 1/e, 1/e² and 1/e²:

        >>> from pl_prefopt.objectives.examples import example
        >>> PairMNS()(example([-4.0, -8.0, -8.0], scores=[2.0, 1.0, 0.0])).loss  # −2 log σ(1/e − 1/e²)
        tensor([1.1672])
    """

    use_when = "MPPO in which the best response meets each of the others alone."

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(SumPerWinner(), temperature=temperature)


class PairMNM(MPPOComparison):
    """MPPO Pair-MNM: −log σ(N p_w − Σ_l p_l), the best response w against all N below it at once; eq. 10.

    The paper's choice.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, p = 1/e, 1/e² and 1/e²:

        >>> from pl_prefopt.objectives.examples import example
        >>> PairMNM()(example([-4.0, -8.0, -8.0], scores=[2.0, 1.0, 0.0])).loss  # −log σ(2/e − 2/e²)
        tensor([0.4874])
    """

    use_when = "Several scored responses per prompt and no reference; MPPO's best variant in its paper."

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(MergedPerWinner(), temperature=temperature)


class PairMCS(MPPOComparison):
    """MPPO Pair-MCS: −Σ_{s_i > s_j} log σ(p_i − p_j), every response against every one below it; eq. 11.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.
        num_pairs: pairs to sample per prompt at each training step; evaluation, and ``None``, take all.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, p = 1/e, 1/e² and 1/e²:

        >>> from pl_prefopt.objectives.examples import example
        >>> PairMCS()(example([-4.0, -8.0, -8.0], scores=[2.0, 1.0, 0.0])).loss
        tensor([1.8604])
    """

    use_when = "MPPO in which every response meets each worse one alone."

    def __init__(self, *, temperature: float = 1.0, num_pairs: int | None = None) -> None:
        super().__init__(SumOfPairs(), temperature=temperature, num_pairs=num_pairs)

    num_pairs = property(lambda self: self._sampled)


class PairMCM(MPPOComparison):
    """MPPO Pair-MCM: −log σ(Σ_{s_i > s_j} (p_i − p_j)), all comparisons at once; eq. 12.

    It promotes the runner-up of four: each p_i counts as often as i wins minus as often as it loses.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.
        num_pairs: pairs to sample per prompt at each training step; evaluation, and ``None``, take all.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, p = 1/e, 1/e² and 1/e²:

        >>> from pl_prefopt.objectives.examples import example
        >>> PairMCM()(example([-4.0, -8.0, -8.0], scores=[2.0, 1.0, 0.0])).loss  # −log σ(2/e − 2/e²)
        tensor([0.4874])
    """

    use_when = "MPPO in which every response meets all worse ones at once."

    def __init__(self, *, temperature: float = 1.0, num_pairs: int | None = None) -> None:
        super().__init__(MergedPairs(), temperature=temperature, num_pairs=num_pairs)

    num_pairs = property(lambda self: self._sampled)


class ListMLE(MPPOComparison):
    """MPPO List-MLE: −Σ_i log(exp p_i / Σ_{s_j ≤ s_i} exp p_j), the likelihood of the whole ranking; eq. 13.

    Responses that tie are not compared with each other.

    Args:
        temperature: T > 0 in p = exp(ℓ̄/T); 1 is the paper, anything else an extension of this project.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, p = 1/e and 1/e²:

        >>> from pl_prefopt.objectives.examples import example
        >>> ListMLE()(example([-4.0, -8.0])).loss  # −log σ(1/e − 1/e²)
        tensor([0.5836])
    """

    use_when = "The order of all responses matters, not only which is best."

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(PlackettLuce(), temperature=temperature)


def sample(candidates: Tensor, count: int) -> Tensor:
    """Choose some of each row's true places, uniformly and without replacement.

    Random numbers come from torch's generator of the CPU, which a run reseeds for each training batch.

    Args:
        candidates: bool [..., N].
        count: how many to choose; all where there are no more.

    Returns:
        bool [..., N].
    """
    numbers = torch.rand(candidates.shape).to(candidates.device).masked_fill(~candidates, -1.0)
    chosen = numbers.topk(min(count, candidates.shape[-1]), dim=-1).indices
    return torch.zeros_like(candidates).scatter(-1, chosen, True) & candidates

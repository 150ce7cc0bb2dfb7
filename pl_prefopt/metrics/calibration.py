"""Whether probabilities are right as often as they say, and the bounds of ranking accuracy under DPO."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logit  # type: ignore[import-untyped]
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics.agreement import probabilities, same_length
from pl_prefopt.metrics.bootstrap import Floats
from pl_prefopt.metrics.pairs import winner_minus_loser
from pl_prefopt.metrics.states import PreferenceMetric, all_present
from pl_prefopt.pairing import ALL_PAIRS

VOTE_SHARE = 0.75
"""The released code's share of annotators who prefer y_w, for data without votes."""


def calibration_error(probability: npt.ArrayLike, outcome: npt.ArrayLike, *, bins: int = 10) -> float:
    """Return the expected calibration error: the mean distance of a bin's probability from its frequency.

    Bins are of equal width; each counts by its number of values.

    Args:
        probability: [values] from 0 to 1. Values with NaN in either are left out.
        outcome: [values] from 0 to 1: what happened, 0.5 for a tie.
        bins: the number of bins.

    Raises:
        ConfigError: if the two are not of the same values or not from 0 to 1, or ``bins`` is below 1.

    Examples:
        Said 0.9 twice, right once:

        >>> round(calibration_error([0.9, 0.9], [1, 0]), 6)
        0.4
    """
    said, happened = probabilities("probability", probability), probabilities("outcome", outcome)
    same_length(said, happened)
    if bins < 1:
        raise ConfigError(f"expected `bins` to be at least 1, got {bins}.")
    known = ~(np.isnan(said) | np.isnan(happened))
    said, happened = said[known], happened[known]
    if not len(said):
        return float("nan")
    place = np.clip((said * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(place, weights=said - happened, minlength=bins)
    return float(np.abs(gaps).sum() / len(said))


class ExpectedCalibrationError(PreferenceMetric):
    """The expected calibration error of σ(margin) as the probability that the better response is better.

    Each pair counts in the direction that the rewards prefer: its confidence σ(|margin|) against whether that
    was right, as in the report's figure, but in bins of equal width from 0.5 to 1. It means something for
    rewards that are logits of a preference, such as DPO's and Bradley-Terry's. Add it to a run with
    ``model.init_args.metrics``.

    Args:
        bins: the number of bins.

    Examples:
        Margins of 0: 0.5 is right half of the time.

        >>> metric = ExpectedCalibrationError()
        >>> metric.update(torch.tensor([[0.0, 0.0]]), scores=torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.)
    """

    info = MetricInfo(
        name="calibration_error",
        help="Mean distance of σ(|margin|) from how often the preferred response is the better one.",
        range=(0.0, 1.0),
        better="lower",
        logged="evaluation",
    )
    counts: Tensor
    gaps: Tensor

    def __init__(self, *, bins: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins < 1:
            raise ConfigError(f"expected `bins` to be at least 1, got {bins}.")
        self.bins = bins
        self.add_state("counts", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("gaps", torch.zeros(bins, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, reward: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``reward``, ``scores`` and ``present`` [B, R]."""
        wins = ALL_PAIRS(scores, all_present(scores, present))
        margins = winner_minus_loser(reward.float())[wins]
        confidence, right = margins.abs().sigmoid(), (margins.sign() + 1) / 2
        place = ((confidence - 0.5) * 2 * self.bins).long().clamp(0, self.bins - 1)
        self.counts = self.counts + torch.bincount(place, minlength=self.bins)
        self.gaps = self.gaps + torch.zeros_like(self.gaps).index_add_(0, place, confidence - right)

    def compute(self) -> Tensor:
        """Return the error; NaN without pairs."""
        return self.gaps.abs().sum() / self.counts.sum()


# -- ranking accuracy


class Bounds(NamedTuple):
    """Ranking accuracies that training could reach.

    Attributes:
        accuracy: the idealised ranking accuracy of one β.
        ties: the share of pairs whose two responses are then about as likely: a ratio within 5 % of 1.
    """

    accuracy: float
    ties: float


def idealised_log_ratio(
    reference_gap: npt.ArrayLike, *, beta: float, votes: npt.ArrayLike = VOTE_SHARE
) -> Floats:
    """Return log π*(y_w)/π*(y_l) = log π_ref(y_w)/π_ref(y_l) + log(α/(1 − α))/β of the ideal policy.

    Chen et al., "Preference Learning Algorithms Do Not Learn Preference Rankings", arXiv 2405.19534. α is the
    share of annotators who prefer y_w; 1 − α is at least 10⁻³, as in the released code.

    Args:
        reference_gap: [pairs] log π_ref(y_w) − log π_ref(y_l).
        beta: β > 0 of the training.
        votes: α, one number or one per pair; 0.75 by default, the released code's for data without votes.

    Raises:
        ConfigError: if ``beta`` is not above 0 or a share is outside of [0, 1].

    Examples:
        With α = ½ the ideal policy ranks as the reference does.

        >>> idealised_log_ratio([-2.0], beta=0.1, votes=0.5).tolist()
        [-2.0]
        >>> idealised_log_ratio([-2.0], beta=0.5).round(4).tolist()  # −2 + 2 log 3
        [0.1972]
    """
    if not beta > 0:
        raise ConfigError(f"expected `beta` to be above 0, got {beta}.")
    share = np.asarray(votes, dtype=np.float64)
    if ((share < 0) | (share > 1)).any():
        raise ConfigError("expected shares of votes from 0 to 1.")
    gaps = np.asarray(reference_gap, dtype=np.float64)
    if share.ndim:
        same_length(gaps, share)
    odds = logit(np.clip(share, 1e-3, 1 - 1e-3))
    return np.asarray(gaps + odds / beta)


def idealised_ranking_accuracy(
    reference_gap: npt.ArrayLike, *, beta: float, votes: npt.ArrayLike = VOTE_SHARE
) -> Bounds:
    """Return the share of pairs that the ideal policy ranks right, see ``idealised_log_ratio``.

    Pairs with NaN are left out; NaN where none is left.

    Examples:
        >>> idealised_ranking_accuracy([-2.0, -30.0], beta=0.1)  # + 10 log 3 = 10.99
        Bounds(accuracy=0.5, ties=0.0)
    """
    ratio = idealised_log_ratio(reference_gap, beta=beta, votes=votes)
    ratio = ratio[~np.isnan(ratio)]
    if not len(ratio):
        return Bounds(float("nan"), float("nan"))
    ties = np.abs(np.expm1(np.clip(ratio, -1.0, 1.0))) < 0.05
    return Bounds(float((ratio > 0).mean()), float(ties.mean()))


def dpo_loss_bound(reference_gap: npt.ArrayLike, *, beta: float) -> Floats:
    """Return the DPO loss at or below which the policy ranks a pair right, and above which it doesn't.

    −log σ(β c) with c = log π_ref(y_l) − log π_ref(y_w), Theorem 4.1 of arXiv 2405.19534. The
    more the reference prefers y_l, the smaller the loss must become.

    Args:
        reference_gap: [pairs] log π_ref(y_w) − log π_ref(y_l).
        beta: β > 0.

    Examples:
        >>> dpo_loss_bound([-5.0, -30.0], beta=0.1).round(3).tolist()
        [0.474, 0.049]
    """
    if not beta > 0:
        raise ConfigError(f"expected `beta` to be above 0, got {beta}.")
    return np.asarray(np.logaddexp(0.0, beta * np.asarray(reference_gap, dtype=np.float64)))


class IdealizedRankingAccuracy(PreferenceMetric):
    """The ranking accuracy of the ideal policy of a reference: a bound to compare ``ranking_accuracy`` with.

    Over all pairs, with the mean over the references given. Add it to a run with ``model.init_args.metrics``.

    Args:
        beta: β of the objective.
        vote_share: α, the share of annotators who prefer the better response.

    Examples:
        >>> metric = IdealizedRankingAccuracy(beta=0.1)
        >>> metric.update(
        ...     references=torch.tensor([[[-20.0, -10.0], [-60.0, -10.0]]]),
        ...     scores=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        ... )
        >>> metric.compute()  # −10 + 10 log 3 > 0, −50 + 10 log 3 < 0
        tensor(0.5000)
    """

    info = MetricInfo(
        name="idealized_ranking_accuracy",
        help="Share of pairs that the ideal policy of the reference ranks right.",
        range=(0.0, 1.0),
        better="higher",
        logged="evaluation",
    )
    gaps: list[Tensor]

    def __init__(self, *, beta: float, vote_share: float = VOTE_SHARE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta, self.vote_share = beta, vote_share
        idealised_log_ratio([0.0], beta=beta, votes=vote_share)  # refuses invalid settings
        self.add_state("gaps", [], dist_reduce_fx="cat")

    def update(self, references: Tensor, scores: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``references`` [K, B, R], ``scores`` and ``present`` [B, R]."""
        wins = ALL_PAIRS(scores, all_present(scores, present))
        self.gaps += [winner_minus_loser(one.double())[wins] for one in references]

    def compute(self) -> Tensor:
        """Return the share; NaN without pairs or references."""
        state: Any = self.gaps
        if isinstance(state, list) and not state:
            return torch.tensor(torch.nan, device=self.device)
        gaps = dim_zero_cat(state)
        bound = idealised_ranking_accuracy(gaps.cpu().numpy(), beta=self.beta, votes=self.vote_share)
        return torch.tensor(bound.accuracy, dtype=torch.float32, device=self.device)

"""Metrics of judges and of rewards: closed forms, fixed points and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pl_prefopt.errors import ConfigError
from pl_prefopt.metrics import (
    ExpectedCalibrationError,
    IdealizedRankingAccuracy,
    bradley_terry,
    calibration_error,
    cohen_kappa,
    coverage,
    dpo_loss_bound,
    elo,
    idealised_log_ratio,
    idealised_ranking_accuracy,
    independent_coverage,
    is_connected,
    krippendorff_alpha,
    length_bias,
    position_bias,
    relative_confidence,
    reversal_accuracy,
    selective_auc,
    self_preference,
    trueskill,
)


def test_cohens_kappa_is_1_for_agreement_0_for_chance_and_negative_for_less():
    assert cohen_kappa("AABB", "AABB") == 1
    assert cohen_kappa("AABB", "ABAB") == 0
    assert cohen_kappa("AB", "BA") == -1
    assert cohen_kappa(["A", None, "B", "B"], ["A", "B", "B", None]) == 1
    assert math.isnan(cohen_kappa("AA", "AA"))
    with pytest.raises(ConfigError, match="the same length, got 1 and 2"):
        cohen_kappa("A", "AB")


def test_krippendorffs_alpha_of_the_published_example():
    """Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): 0.743 and 0.849."""
    nan = np.nan
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    assert krippendorff_alpha(ratings) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(ratings, level="interval") == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha([[1, 2], [1, 2]]) == 1
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1, nan], [nan, 1]]))


def test_position_bias_of_a_mixture():
    # Both right; the first place twice; a tie and a verdict; unknown.
    found = position_bias([0.9, 0.9, 0.5, np.nan], [0.8, 0.1, 0.7, 0.5])
    assert found.first == pytest.approx((1 + 0 + 1 + 1 + 0.5 + 0) / 6)
    assert (found.consistent, found.swapped) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_the_coefficient_of_length_is_that_of_the_model_that_made_the_verdicts():
    gaps = np.array([-3.0, -1.0, 1.0, 3.0, 7.0])
    spread = gaps.std()
    chances = 1 / (1 + np.exp(-(0.4 + 0.8 * gaps / spread)))
    found = length_bias(chances, gaps)
    assert found.coefficient == pytest.approx(0.8, abs=1e-6)
    assert found.intercept == pytest.approx(0.4, abs=1e-6)
    # The standard error is that of the information matrix.
    weights = chances * (1 - chances)
    information = np.array([[weights.sum(), weights @ gaps / spread], [0, weights @ (gaps / spread) ** 2]])
    information[1, 0] = information[0, 1]
    assert found.deviation == pytest.approx(math.sqrt(np.linalg.inv(information)[1, 1]), rel=1e-5)
    with pytest.raises(ConfigError, match="length decides every verdict"):
        length_bias([1, 1, 0, 0], [1, 2, -1, -2])
    assert 0 < length_bias([1, 1, 0, 0], [1, 2, -1, -2], ridge=1.0).coefficient < 5
    with pytest.raises(ConfigError, match="pairs of different lengths"):
        length_bias([1, 0], [1, 1])


def test_self_preference_counts_ties_of_the_judge_and_of_the_votes_half():
    assert self_preference([0.9, 0.1], [[1], [0]]) == 0
    assert self_preference([0.5, 0.5], [[1, 0], [1, 1, 0]]) == 0.5 - 0.75
    assert self_preference([0.9], [[0.5, 0.5]]) == 0.5  # votes for neither
    # Both models of a pair may prefer themselves.
    assert self_preference([1.0, 1.0], [[1], [0]]) == self_preference([1.0, 1.0], [[0], [1]]) == 0.5


def test_a_judge_that_ignores_the_context_never_reverses():
    same = np.random.default_rng(0).uniform(size=50)
    assert reversal_accuracy(same, same) == 0
    assert reversal_accuracy([0.9], [0.1]) == 1


def test_coverage_and_that_of_independent_samples():
    assert coverage([[True, False], [False, False], [True, True]]) == pytest.approx(2 / 3)
    random = np.random.default_rng(0)
    drawn = random.uniform(size=(20_000, 4)) < 0.0398
    assert coverage(drawn.tolist()) == pytest.approx(independent_coverage(0.0398, 4), abs=0.01)


MATCHES = [(0, 1, 1.0), (1, 0, 1.0), (1, 2, 1.0), (2, 0, 0.5), (0, 2, 1.0), (2, 1, 1.0), (0, 1, 0.5)]


def test_bradley_terry_expects_the_wins_that_were_observed():
    strengths = bradley_terry(MATCHES, 3)
    expected, observed = np.zeros(3), np.zeros(3)
    for first, second, result in MATCHES:
        chance = 1 / (1 + math.exp(strengths[second] - strengths[first]))
        expected += [
            chance if player == first else 1 - chance if player == second else 0 for player in range(3)
        ]
        observed += [
            result if player == first else 1 - result if player == second else 0 for player in range(3)
        ]
    assert expected == pytest.approx(observed, abs=1e-9)
    assert strengths.sum() == pytest.approx(0, abs=1e-12)


def test_an_unbeaten_player_needs_a_ridge():
    matches = [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.0), (2, 1, 1.0)]
    with pytest.raises(ConfigError, match=r"the strengths are not finite.* Set `ridge`"):
        bradley_terry(matches, 3)
    strengths = bradley_terry(matches, 3, ridge=0.5)
    assert strengths[0] > strengths[1] == pytest.approx(strengths[2])
    # At the maximum: observed minus expected wins = ridge · s.
    chance = 1 / (1 + np.exp(strengths[1:] - strengths[0]))
    assert 2 - chance.sum() == pytest.approx(0.5 * strengths[0], abs=1e-9)
    assert not is_connected([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert is_connected([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    with pytest.raises(ConfigError, match="expected two different players from 0 to 1"):
        bradley_terry([(0, 0, 1.0)], 2)


def test_elo_is_zero_sum_and_moves_by_k_times_the_surprise():
    ratings = elo(MATCHES, 3, k=20)
    assert ratings.sum() == pytest.approx(3000)
    assert elo([(0, 1, 1), (0, 1, 1)], 2, k=32)[0] == pytest.approx(
        1016 + 32 * (1 - 1 / (1 + 10 ** (-32 / 400)))
    )
    assert elo([(0, 1, 0.5)], 2).tolist() == [1000, 1000]


def test_trueskill_of_two_new_players_is_the_published_one():
    won = trueskill([(0, 1, 1)], 2)
    assert won.round(3).tolist() == [[29.396, 7.171], [20.604, 7.171]]
    assert trueskill([(1, 0, 0)], 2) == pytest.approx(won)
    assert trueskill([(0, 1, 0.5)], 2).round(3).tolist() == [[25.0, 6.458], [25.0, 6.458]]


def test_selective_classification_takes_ties_at_random():
    assert selective_auc([1, 1], [True, False]) == pytest.approx((0.5 + 0.5) / 2)
    # Any confidence that is the same everywhere has the mean accuracy.
    assert selective_auc([3] * 4, [1, 1, 0, 1]) == pytest.approx(0.75)
    assert selective_auc([3, 2, 1], [1, 1, 0]) == pytest.approx((1 + 1 + 2 / 3) / 3)


@pytest.mark.parametrize("method", ["bradley_terry", "elo", "trueskill"])
def test_relative_confidence_orders_questions_by_their_matches(method):
    random = np.random.default_rng(0)
    truth = np.linspace(-2, 2, 12)
    matches = []
    for _ in range(600):
        first, second = random.choice(12, size=2, replace=False).tolist()
        chance = 1 / (1 + math.exp(truth[second] - truth[first]))
        matches.append((first, second, float(random.uniform() < chance)))
    found = relative_confidence(matches, 12, method=method, ridge=0.01)
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def test_calibration_by_bins():
    assert calibration_error([0.2] * 5, [1, 0, 0, 0, 0]) == pytest.approx(0)
    # Two bins: |0.15 − 0| · 1/2 and |0.85 − 0.5| · 1/2.
    assert calibration_error([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 0], bins=2) == pytest.approx((0.15 + 0.35) / 2)
    metric = ExpectedCalibrationError(bins=1)
    metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), scores=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    metric.update(torch.tensor([[3.0, 0.0]]), scores=torch.tensor([[1.0, 1.0]]))  # no pair
    confidence = (1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-1))) / 2
    assert metric.compute().item() == pytest.approx(abs(confidence - 0.5), abs=1e-6)
    fine = ExpectedCalibrationError(bins=10)
    fine.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), scores=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    gaps = (1 - 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1)))
    assert fine.compute().item() == pytest.approx(sum(gaps) / 2, abs=1e-6)


def test_the_ideal_policy_is_that_of_the_kl_regularised_optimum():
    """On three responses with Bradley-Terry rewards, π* ∝ π_ref exp(r/β) exactly."""
    random = np.random.default_rng(0)
    reference, rewards, beta = np.log(random.dirichlet(np.ones(3))), random.normal(size=3), 0.3
    optimum = reference + rewards / beta - np.logaddexp.reduce(reference + rewards / beta)
    votes = 1 / (1 + np.exp(rewards[1] - rewards[0]))
    ratio = idealised_log_ratio([reference[0] - reference[1]], beta=beta, votes=[votes])
    assert ratio[0] == pytest.approx(optimum[0] - optimum[1])


def test_a_loss_at_the_bound_is_where_the_ranking_turns():
    """Theorem 4.1: the policy ranks a pair right iff DPO's loss is at most −log σ(βc)."""
    random = np.random.default_rng(0)
    reference, policy, beta = random.normal(size=500) * 5, random.normal(size=500) * 5, 0.2
    loss = np.logaddexp(0, -beta * (policy - reference))
    assert ((loss <= dpo_loss_bound(reference, beta=beta)) == (policy >= 0)).all()


def test_idealised_accuracy_of_votes_and_ties():
    bounds = idealised_ranking_accuracy([0.01, -1.0, -1.0, 3.0], beta=1.0, votes=[0.5, 0.9, 0.5, 1.0])
    assert bounds.accuracy == 0.75
    assert bounds.ties == 0.25
    for options, sentence in (
        ({"beta": 0.0}, "`beta` to be above 0"),
        ({"beta": 1.0, "votes": 2}, "from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            idealised_ranking_accuracy([0.0], **options)
    metric = IdealizedRankingAccuracy(beta=0.1, vote_share=0.5)
    assert math.isnan(metric.compute())
    references = torch.tensor([[[-3.0, -4.0, -2.0]]])
    metric.update(references=references, scores=torch.tensor([[3.0, 2.0, 1.0]]))
    assert metric.compute().item() == pytest.approx(1 / 3)  # of three pairs the reference ranks one right


NAN = float("nan")


def test_unknown_votes_are_left_out_and_never_counted_as_something():
    assert cohen_kappa([1.0, NAN, 0.0, 0.0], [1.0, 0.0, NAN, 0.0]) == 1
    # In floats the mean of six equal numbers differs from them.
    assert math.isnan(krippendorff_alpha([[0.1] * 3, [0.1] * 3], level="interval"))
    gaps = [-3.0, -1.0, 1.0, 3.0]
    assert length_bias([0, 1, 0, 1, NAN, 1], [*gaps, 100.0, NAN]) == length_bias([0, 1, 0, 1], gaps)
    with pytest.raises(ConfigError, match="pairs of different lengths"):
        length_bias([NAN, 1], [1, 2])
    assert self_preference([0.9, NAN, 0.9, 0.1], [[1, NAN], [1], [], [0, 0, NAN]]) == 0
    assert math.isnan(self_preference([0.9], [[NAN]]))
    assert reversal_accuracy([0.9, NAN], [0.1, 0.1]) == 0.5
    assert calibration_error([0.9, 0.9, NAN, 0.5], [1, 0, 1, NAN]) == pytest.approx(0.4)
    assert idealised_ranking_accuracy([5.0, NAN], beta=1.0, votes=[0.5, 0.5]) == (1.0, 0.0)
    assert math.isnan(idealised_ranking_accuracy([], beta=1.0).accuracy)


@pytest.mark.parametrize(
    ("measure", "reason"),
    [
        (lambda: position_bias([3.0], [0.1]), "`forward` to be from 0 to 1, got 3"),
        (lambda: position_bias([0.1], [-1.0]), "`backward` to be from 0 to 1, got -1"),
        (lambda: length_bias([2.0, 0.0], [1, 2]), "`preferred` to be from 0 to 1"),
        (lambda: length_bias([1.0, 0.0], [1, 2], ridge=-1), "`ridge` to be at least 0"),
        (lambda: self_preference([7.5], [[1]]), "`own` to be from 0 to 1"),
        (lambda: self_preference([0.5], [[3]]), "`gold` to be from 0 to 1"),
        (lambda: reversal_accuracy([2.0], [-1.0]), "`first` to be from 0 to 1"),
        (lambda: independent_coverage(15, 4), "`share` to be from 0 to 1, got 15"),
        (lambda: calibration_error([2.0], [1]), "`probability` to be from 0 to 1"),
        (lambda: calibration_error([0.2, 0.4], [1]), "the same length, got 2 and 1"),
        (lambda: calibration_error([0.2], [1], bins=0), "`bins` to be at least 1"),
        (lambda: selective_auc([1, 2, 3], [True, False]), "the same length, got 3 and 2"),
        (lambda: selective_auc([NAN], [True]), "leave such answers out"),
        (lambda: elo([(0, -1, 1)], 2), "two different players from 0 to 1"),
        (lambda: elo([(0, 1, 2)], 2), "a result from 0 to 1"),
        (lambda: trueskill([(0, 1, NAN)], 2), "a result from 0 to 1"),
        (lambda: idealised_log_ratio([1.0], beta=NAN), "`beta` to be above 0"),
        (lambda: idealised_log_ratio([1.0], beta=1.0, votes=[0.5, 0.6]), "the same length, got 1 and 2"),
        (lambda: dpo_loss_bound([1.0], beta=NAN), "`beta` to be above 0"),
    ],
)
def test_what_would_be_a_wrong_number_is_refused(measure, reason):
    with pytest.raises(ConfigError, match=reason):
        measure()

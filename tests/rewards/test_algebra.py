"""Transforms, combinations and multipliers of rewards against their closed forms."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.rewards import (
    Affine,
    HarmonicMean,
    LogSigmoid,
    Minimum,
    Multipliers,
    SumOfTransforms,
    WeightedMean,
    reference_level,
)

DOUBLE = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def test_the_log_sigmoid_stresses_poor_responses_and_keeps_their_order():
    reward = drawn(20).sort().values.requires_grad_()
    found = LogSigmoid(0.5)(reward)
    (slope,) = torch.autograd.grad(found.sum(), reward)
    torch.testing.assert_close(slope, torch.sigmoid(0.5 - reward))
    assert (slope.diff() < 0).all()
    assert (found.diff() > 0).all()
    assert (found <= 0).all()
    assert LogSigmoid(0.0)(torch.tensor([-1e4, 1e4])).tolist() == [-1e4, 0.0]


def test_a_sum_of_log_sigmoids_is_the_probability_of_all():
    rewards, levels = drawn(6, 3), (0.1, -0.4, 1.0)
    found = SumOfTransforms([LogSigmoid(level) for level in levels])(rewards)
    expected = torch.sigmoid(rewards - torch.tensor(levels, dtype=DOUBLE)).prod(dim=-1)
    torch.testing.assert_close(found.exp(), expected)


def test_the_optimum_under_a_kl_penalty_is_the_tilted_policy():
    """E u − γ KL over policies of four responses is largest at π_0 σ(r − r_ref)^(1/γ)."""
    reward, start = drawn(4), drawn(4, seed=1).log_softmax(dim=0)
    best = (start + LogSigmoid(0.3)(reward) / 0.5).log_softmax(dim=0).requires_grad_()
    policy = best.softmax(dim=0)
    value = (policy * (LogSigmoid(0.3)(reward) - 0.5 * (policy.log() - start))).sum()
    (slope,) = torch.autograd.grad(value, best)
    assert slope.abs().max() < 1e-12
    torch.testing.assert_close(best.exp(), start.exp() * torch.sigmoid(reward - 0.3) ** 2 / value.exp() ** 2)


def test_the_reference_level_is_the_85th_percentile_of_normal_rewards():
    samples = drawn(100_000)
    assert float(reference_level(samples)) == pytest.approx(float(samples.quantile(0.85)), abs=0.02)
    deviations = reference_level(torch.tensor([-1.0, 1.0], dtype=DOUBLE))
    assert float(deviations) == pytest.approx(1.0364333894937898, abs=1e-14)
    levels = reference_level(torch.stack([samples[:9], samples[:9] + 2]))
    torch.testing.assert_close(levels[1] - levels[0], torch.tensor(2.0, dtype=DOUBLE))
    with pytest.raises(ConfigError, match="at least 2 samples per prompt, got 1"):
        reference_level(samples[:1])
    with pytest.raises(ConfigError, match="quantile must be above 0 and below 1, but is 1"):
        reference_level(samples, quantile=1)


def test_means_lie_in_order_and_agree_on_equal_rewards():
    rewards, weights = drawn(50, 3).exp(), [1.0, 2.0, 0.5]
    lowest, harmonic, mean = (
        part(rewards) for part in (Minimum(), HarmonicMean(weights), WeightedMean(weights))
    )
    assert (lowest <= harmonic).all()
    assert (harmonic <= mean).all()
    for part in (Minimum(), HarmonicMean(weights), WeightedMean(weights)):
        torch.testing.assert_close(part(torch.full((1, 3), 0.7)), torch.tensor([0.7]))
    reciprocal = (torch.tensor(weights, dtype=DOUBLE) / rewards).sum(-1)
    torch.testing.assert_close(harmonic, 3.5 / reciprocal)
    assert HarmonicMean([1.0, 1.0])(torch.tensor([[1.0, -1.0], [1.0, 0.0], [1.0, 1.0]])).isnan().tolist() == [
        True,
        True,
        False,
    ]


def test_the_expected_minimum_is_at_most_the_minimum_of_expectations():
    rewards = drawn(200, 4)
    assert Minimum()(rewards).mean() <= rewards.mean(dim=0).min()
    shifted = Minimum(baselines=[1.0, 2.0, 3.0, 4.0])(rewards)
    torch.testing.assert_close(shifted, Minimum()(rewards - torch.arange(1, 5)))
    torch.testing.assert_close(Affine(2.0, 1.0)(rewards), 2 * rewards + 1)


def test_multipliers_follow_their_own_sgd():
    own = Multipliers(thresholds=[1.0, -1.0])
    mu = torch.zeros(2, requires_grad=True)
    search = torch.optim.SGD([mu], lr=0.01, momentum=0.1)
    for step in range(5):
        means = torch.tensor([0.3 * step, -2.0])
        search.zero_grad()
        (mu.sigmoid() * (means - torch.tensor([1.0, -1.0]))).sum().backward()
        search.step()
        own.update(means)
    torch.testing.assert_close(own.mu, mu.detach())
    again = Multipliers(thresholds=[1.0, -1.0])
    again.load_state_dict(own.state_dict())
    for each in (own, again):
        each.update(torch.zeros(2))
    assert torch.equal(own.mu, again.mu), "momentum is part of the state"


@pytest.mark.parametrize("equality", [False, True])
def test_multipliers_rise_below_the_threshold_and_stay_at_it(equality):
    multipliers = Multipliers(thresholds=[0.0, 0.0, 0.0], equality=equality)
    before = multipliers.values
    multipliers.update(torch.tensor([-1.0, 0.0, 1.0]))
    assert (multipliers.values - before).sign().tolist() == [1.0, 0.0, -1.0]
    for _ in range(3000):
        multipliers.update(torch.tensor([-5.0, 0.0, 5.0]))
    low = -1 if equality else 0
    assert low < multipliers.values[2] < 0.1 < 0.9 < multipliers.values[0] < 1
    rewards, penalty = drawn(4, 3).float(), drawn(4, seed=1).float()
    expected = (rewards * multipliers.values).sum(-1) + (3 - multipliers.values.sum()) * penalty
    torch.testing.assert_close(multipliers(rewards, penalty), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedMean([1.0, -1.0]), "weights must be numbers of at least 0"),
        (lambda: HarmonicMean([]), "weights must be numbers of at least 0"),
        (lambda: SumOfTransforms([]), "one part per reward, got none"),
        (lambda: Multipliers(thresholds=[]), "one number per reward, got none"),
        (lambda: Multipliers(thresholds=[1.0], momentum=1.0), "momentum must be below 1, but is 1.0"),
        (lambda: WeightedMean([1.0])(torch.zeros(2, 3)), "combines 1 rewards, but got 3"),
        (lambda: Minimum(baselines=[0.0])(torch.zeros(2, 3)), "combines 1 rewards, but got 3"),
        (lambda: Multipliers(thresholds=[1.0]).update(torch.tensor([torch.nan])), "finite numbers, got .nan"),
    ],
)
def test_what_cannot_be_combined_is_refused(make, message):
    with pytest.raises((ConfigError, ContractError), match=message):
        make()

"""MRPO's parts and Multi-DPO against values worked by hand and their closed forms, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt import functional

DOUBLE = torch.float64
LOG_PROB = st.floats(-60.0, -0.5)


def column(*values, grad=False):
    """K log-probs, one pair."""
    return torch.tensor(values, dtype=DOUBLE, requires_grad=grad).reshape(-1, 1)


def pairs(fewest=1, most=4):
    """Log-probs [K, 1] of a winner and of a loser."""

    def draw(count):
        values = st.lists(LOG_PROB, min_size=count, max_size=count).map(lambda drawn: column(*drawn))
        return st.tuples(values, values)

    return st.integers(fewest, most).flatmap(draw)


def shares(count):
    """Weights [K, 1] that add up to 1, some perhaps 0."""
    raw = st.lists(st.floats(0.0, 1.0), min_size=count, max_size=count).filter(lambda drawn: sum(drawn) > 0.1)
    return raw.map(lambda drawn: column(*drawn) / sum(drawn))


def weighted(fewest=1, most=4):
    """Log-probs and weights, both [K, 1]."""
    return st.integers(fewest, most).flatmap(
        lambda count: st.tuples(
            st.lists(LOG_PROB, min_size=count, max_size=count).map(lambda drawn: column(*drawn)),
            shares(count),
        )
    )


MEANS = [functional.log_harmonic_mean, functional.log_geometric_mean]

# The pair of the hand-worked values: two references, winner and loser.
CHOSEN, REJECTED = column(-10.0, -9.0), column(-12.0, -15.0)


def both_epsilons(pair, epsilon_max):
    """ε of winner and loser, [1, 2]."""
    sides = pair, tuple(reversed(pair))
    return torch.stack([functional.adaptive_epsilon(*side, epsilon_max=epsilon_max) for side in sides], dim=1)


# --- by hand


def test_adaptive_weights_by_hand():
    # Gaps 2 and 6.
    assert functional.adaptive_weights(CHOSEN, REJECTED)[:, 0].tolist() == [0.25, 0.75]


def test_adaptive_epsilon_by_hand():
    # Sums over references: −19 for the winner, −27 for the loser, 46 in all.
    assert both_epsilons((CHOSEN, REJECTED), 0.1).tolist() == [pytest.approx([0.1 * 19 / 46, 0.1 * 27 / 46])]


def test_clip_by_hand():
    # ε = 0.1 holds the second reference in [−11, −9] beside −10, and in [−13.2, −10.8] beside −12.
    references = torch.cat([CHOSEN, REJECTED, column(-13.0, -10.0)], dim=1)
    clipped = functional.clip_to_first(references, torch.tensor(0.1, dtype=DOUBLE))
    expected = torch.tensor([[-10.0, -12.0, -13.0], [-9.0, -13.2, -11.7]], dtype=DOUBLE)
    torch.testing.assert_close(clipped, expected)


def test_means_by_hand():
    # −log(0.25 e^10 + 0.75 e^9) = −10 − log(0.25 + 0.75 e^−1) = −10 − log 0.525910 = −9.357375
    weights = column(0.25, 0.75)
    assert functional.log_harmonic_mean(CHOSEN, weights).item() == pytest.approx(-9.357375, abs=1e-6)
    # 0.25·(−10) + 0.75·(−9)
    assert functional.log_geometric_mean(CHOSEN, weights).item() == pytest.approx(-9.25)


def test_multi_dpo_by_hand():
    # Policy −8 and −11. Over reference 1: h = 2 − 1 = 1; over reference 2: h = 1 − 4 = −3. β = 0.5:
    # 0.25·log(1 + e^−0.5) + 0.75·log(1 + e^1.5) = 0.25·0.474077 + 0.75·1.701413
    policy = column(-8.0, grad=True), column(-11.0)
    result = functional.multi_dpo(*policy, CHOSEN, REJECTED, column(0.25, 0.75), beta=0.5)
    assert result.loss.item() == pytest.approx(1.394579, abs=1e-6)
    # Rewards are over reference 1.
    assert result.chosen_reward.item() == pytest.approx(1.0)
    assert result.rejected_reward.item() == pytest.approx(0.5)
    assert result.loss.requires_grad
    assert not result.chosen_reward.requires_grad


# --- adaptive weights


@given(pairs())
def test_weights_add_up_to_one_and_do_not_know_the_winner(pair):
    weights = functional.adaptive_weights(*pair)
    assert weights.sum().item() == pytest.approx(1.0)
    assert (weights >= 0).all()
    assert torch.equal(weights, functional.adaptive_weights(*reversed(pair)))


@given(pairs(), st.integers(-8, 8))
def test_weights_ignore_the_scale(pair, exponent):
    # Powers of two, by which numbers are multiplied without rounding.
    scaled = functional.adaptive_weights(*(2.0**exponent * side for side in pair))
    torch.testing.assert_close(scaled, functional.adaptive_weights(*pair), atol=1e-12, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_references_that_tell_nothing_apart_share_alike(count):
    side = column(*range(-5, count - 5))
    assert functional.adaptive_weights(side, side)[:, 0].tolist() == pytest.approx([1 / count] * count)


def test_a_reference_that_ties_has_no_weight():
    assert functional.adaptive_weights(column(-3.0, -4.0), column(-3.0, -9.0))[:, 0].tolist() == [0.0, 1.0]


def test_nothing_about_references_carries_a_gradient():
    chosen, rejected = column(-10.0, -9.0, grad=True), column(-12.0, -15.0, grad=True)
    assert not functional.adaptive_weights(chosen, rejected).requires_grad
    assert not functional.adaptive_epsilon(chosen, rejected, epsilon_max=0.1).requires_grad


# --- adaptive ε and the clip


@given(pairs(), st.floats(0.0, 10.0))
def test_the_epsilons_of_a_pair_add_up_to_the_maximum(pair, epsilon_max):
    epsilon = both_epsilons(pair, epsilon_max)
    assert epsilon.sum().item() == pytest.approx(epsilon_max)
    assert (epsilon >= 0).all()


def test_epsilon_is_0_where_all_log_probs_are():
    nothing = torch.zeros(2, 3)
    assert functional.adaptive_epsilon(nothing, nothing, epsilon_max=0.1).tolist() == [0.0, 0.0, 0.0]


@given(pairs(), st.floats(0.0, 0.9))
def test_clipped_references_stay_within_epsilon_of_the_first(pair, epsilon):
    references = torch.cat(pair, dim=1)
    clipped = functional.clip_to_first(references, torch.tensor(epsilon, dtype=DOUBLE))
    assert torch.equal(clipped[0], references[0])
    assert ((clipped - references[0]).abs() <= epsilon * references[0].abs() + 1e-9).all()
    for mean in MEANS:
        virtual = mean(clipped, functional.adaptive_weights(*pair))
        assert ((virtual - references[0]).abs() <= epsilon * references[0].abs() + 1e-9).all()


@given(pairs(), st.floats(1.0, 5.0))
def test_from_epsilon_1_the_upper_bound_does_nothing(pair, epsilon):
    references = torch.cat(pair, dim=1)
    clipped = functional.clip_to_first(references, torch.tensor(epsilon, dtype=DOUBLE))
    assert torch.equal(clipped, torch.maximum(references, (1 + epsilon) * references[:1]))


@given(pairs())
def test_a_huge_epsilon_clips_nothing(pair):
    references = torch.cat(pair, dim=1)
    assert torch.equal(functional.clip_to_first(references, both_epsilons(pair, 1e6)), references)


@given(pairs(fewest=2).flatmap(lambda pair: st.tuples(st.just(pair), shares(len(pair[0])))))
def test_without_room_every_mean_is_the_first_reference(drawn):
    (pair, weights), references = drawn, torch.cat(drawn[0], dim=1)
    clipped = functional.clip_to_first(references, both_epsilons(pair, 0.0))
    for mean in MEANS:
        torch.testing.assert_close(mean(clipped, weights), references[0], atol=1e-12, rtol=0)


# --- the means


@given(weighted())
def test_means_are_ordered_and_bounded(drawn):
    references, weights = drawn
    harmonic, geometric = (mean(references, weights).item() for mean in MEANS)
    arithmetic = torch.logsumexp(weights.log() + references, dim=0).item()
    assert harmonic <= geometric + 1e-9
    assert geometric <= arithmetic + 1e-9
    used = references[weights > 0]
    for mean in (harmonic, geometric, arithmetic):
        assert used.min().item() - 1e-9 <= mean <= used.max().item() + 1e-9


@pytest.mark.parametrize("mean", MEANS)
@given(drawn=weighted(), shift=st.floats(-30.0, 30.0))
def test_means_move_with_their_references(mean, drawn, shift):
    references, weights = drawn
    expected = mean(references, weights) + shift
    torch.testing.assert_close(mean(references + shift, weights), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mean", MEANS)
@given(drawn=weighted())
def test_responsibilities_add_up_to_one(mean, drawn):
    references, weights = drawn[0].requires_grad_(), drawn[1]
    (gradient,) = torch.autograd.grad(mean(references, weights).sum(), references)
    assert gradient.sum().item() == pytest.approx(1.0)
    assert (gradient >= -1e-12).all()


@pytest.mark.parametrize("mean", MEANS)
def test_gradients_match_finite_differences(mean):
    references = column(-10.0, -9.0, -12.5, grad=True)
    assert torch.autograd.gradcheck(lambda values: mean(values, column(0.2, 0.5, 0.3)), references)


@pytest.mark.parametrize("mean", MEANS)
@given(drawn=weighted())
def test_one_reference_with_all_the_weight_is_alone(mean, drawn):
    references, _ = drawn
    for k in range(len(references)):
        weights = torch.zeros_like(references)
        weights[k] = 1.0
        assert mean(references, weights).item() == pytest.approx(references[k].item(), abs=1e-9)


@pytest.mark.parametrize("mean", MEANS)
def test_equal_references_are_that_reference_to_the_last_digit(mean):
    same = -900 * torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)).expand(3, -1) - 50
    weights = torch.tensor([[0.2], [0.3], [0.5]])
    assert torch.equal(mean(same, weights), same[0])


@given(LOG_PROB, LOG_PROB, st.floats(0.01, 0.99))
def test_the_harmonic_mean_of_two_in_closed_form(first, second, alpha):
    # L_1 + L_2 − log(α_1 e^L_2 + α_2 e^L_1)
    expected = first + second - math.log(alpha * math.exp(second) + (1 - alpha) * math.exp(first))
    value = functional.log_harmonic_mean(column(first, second), column(alpha, 1 - alpha)).item()
    assert value == pytest.approx(expected, abs=1e-9)


@given(weighted())
def test_the_harmonic_mean_is_nearly_the_most_pessimistic_reference(drawn):
    references, weights = drawn
    lowest = (references - weights.log()).min().item()
    value = functional.log_harmonic_mean(references, weights).item()
    assert lowest - math.log(len(references)) - 1e-9 <= value <= lowest + 1e-9


# --- what the two means are optima of: eq. 6, E_π[r] − β Σ_k α_k KL(π ‖ π_k), over a few responses


def value_of(logits, reward, references, weights, beta):
    log_policy = logits.log_softmax(dim=-1)
    divergence = (log_policy.exp() * (log_policy - references)).sum(dim=-1)
    return (log_policy.exp() * reward).sum() - beta * (weights[:, 0] * divergence).sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_mean_solves_the_objective_and_the_harmonic_one_does_not(seed):
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(3, 6, generator=generator, dtype=DOUBLE).mul(2).log_softmax(dim=-1)
    reward = torch.randn(6, generator=generator, dtype=DOUBLE)
    weights, beta = column(0.5, 0.2, 0.3), 0.4

    def solve(mean):
        return (mean(references, weights) + reward / beta).requires_grad_()

    geometric, harmonic = (solve(mean) for mean in reversed(MEANS))
    best = value_of(geometric, reward, references, weights, beta)
    other = value_of(harmonic, reward, references, weights, beta)
    assert torch.autograd.grad(best, geometric)[0].abs().max() < 1e-12
    assert torch.autograd.grad(other, harmonic)[0].abs().max() > 1e-3
    assert best > other


# --- against DPO and Multi-DPO


def dpo_against(mean, policy, pair, weights, beta=1.0):
    return functional.dpo(*policy, *(mean(side, weights) for side in pair), beta=beta).loss


@given(st.tuples(LOG_PROB, LOG_PROB), st.tuples(LOG_PROB, LOG_PROB), st.integers(2, 4).flatmap(shares))
def test_equal_references_make_all_methods_dpo(policy, reference, weights):
    policy = [column(value) for value in policy]
    pair = [column(*[value] * len(weights)) for value in reference]
    expected = functional.dpo(*policy, *(column(value) for value in reference), beta=0.1).loss.item()
    for mean in MEANS:
        assert dpo_against(mean, policy, pair, weights, 0.1).item() == pytest.approx(expected, abs=1e-12)
    multi = functional.multi_dpo(*policy, *pair, weights, beta=0.1).loss
    assert multi.item() == pytest.approx(expected, abs=1e-12)


@given(pairs(fewest=2), LOG_PROB, LOG_PROB, st.data())
def test_multi_dpo_is_not_below_dpo_against_the_geometric_mean(pair, chosen, rejected, data):
    weights = data.draw(shares(len(pair[0])))
    policy = column(chosen), column(rejected)
    multi = functional.multi_dpo(*policy, *pair, weights, beta=1.0).loss.item()
    assert multi >= dpo_against(functional.log_geometric_mean, policy, pair, weights).item() - 1e-9


def error_weights(seed, mean):
    """The factor at −β∇h in DPO against the mean, and in Multi-DPO, of pairs all references find wrong."""
    generator = torch.Generator().manual_seed(seed)
    policy = -1 - 8 * torch.rand(2, 20_000, generator=generator, dtype=DOUBLE)
    pair = -1 - 8 * torch.rand(2, 2, 20_000, generator=generator, dtype=DOUBLE)
    alpha = torch.rand(20_000, generator=generator, dtype=DOUBLE)
    weights = torch.stack([alpha, 1 - alpha])
    margins = (policy[0] - pair[0]) - (policy[1] - pair[1])
    wrong = (margins < 0).all(dim=0)
    virtual = (policy[0] - mean(pair[0], weights)) - (policy[1] - mean(pair[1], weights))
    single = torch.sigmoid(-virtual)[wrong]
    multi = (weights * torch.sigmoid(-margins)).sum(dim=0)[wrong]
    return single, multi


def test_the_papers_second_proposition_holds_for_the_geometric_mean_only():
    # Prop. 2 has MRPO push harder than Multi-DPO. Where every reference finds the pair wrong, Jensen's
    # inequality on σ gives that for the geometric mean; the harmonic one lacks a second-order term.
    single, multi = error_weights(0, functional.log_geometric_mean)
    assert len(single) > 1000
    assert (single >= multi - 1e-12).all()
    single, multi = error_weights(0, functional.log_harmonic_mean)
    assert (single < multi - 1e-3).double().mean() > 0.05


def test_multi_dpo_gradients_match_finite_differences():
    policy = column(-8.0, grad=True), column(-11.0, grad=True)
    pair, weights = (CHOSEN, REJECTED), column(0.25, 0.75)
    assert torch.autograd.gradcheck(
        lambda *two: functional.multi_dpo(*two, *pair, weights, beta=0.3).loss, policy
    )

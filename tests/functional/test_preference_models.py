"""Strengths, MetaRM, contrastive terms, peer review, user groups: closed forms and planted truth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from pl_prefopt import functional
from pl_prefopt.errors import ContractError
from pl_prefopt.functional import meta_rewards, peer_review, reward_losses, strengths, user_groups

DOUBLE = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def test_the_strength_of_a_published_row():
    """A row of fnlp/hh-rlhf-strength-cleaned."""
    chosen = [3.71875, 0.58984375, 3.390625, 0.006805419921875, -0.6953125]
    chosen += [1.0390625, 1.4140625, 0.8359375, 3.078125, 2]
    rejected = [3.546875, 0.9921875, 2.125, -0.330078125, 1.171875]
    rejected += [1.2578125, 1.078125, 1.0546875, 3.546875, 2.265625]
    found = functional.preference_strength(
        torch.tensor(chosen, dtype=DOUBLE), torch.tensor(rejected, dtype=DOUBLE)
    )
    assert float(found.mean) == pytest.approx(-0.1331085, abs=1e-7)
    assert float(found.std) == pytest.approx(0.7559609, abs=1e-7)


def test_flips_are_undone_by_flips():
    chosen, rejected = drawn(10), drawn(10, seed=1)
    lowest = strengths.weakest(chosen - rejected, share=0.2)
    assert lowest.sum() == 2
    assert (chosen - rejected)[lowest].max() < (chosen - rejected)[~lowest].min()
    twice = strengths.flip(*strengths.flip(chosen, rejected, lowest), lowest)
    assert torch.equal(twice[0], chosen)
    assert torch.equal(twice[1], rejected)


def test_metarm_moves_the_point_of_the_gradient():
    """For J = aᵀθ and L = ½ θᵀAθ: ∇L(θ + ηa) = A(θ + ηa), and its derivative by θ is the same."""
    matrix, ascent, weights = drawn(3, 3), drawn(3, seed=1), drawn(3, seed=2)
    matrix = matrix @ matrix.T

    def spread(w):
        return ascent @ w["w"]

    def loss(w):
        return 0.5 * w["w"] @ matrix @ w["w"]

    for exact in (False, True):
        found = meta_rewards.meta_gradient({"w": weights}, spread, loss, step=0.1, exact=exact)
        torch.testing.assert_close(found["w"], matrix @ (weights + 0.1 * ascent))

    def curved(w):
        return 0.5 * (w["w"] ** 2).sum()

    first, exact = (
        meta_rewards.meta_gradient({"w": weights}, curved, loss, step=0.1, exact=exact)["w"]
        for exact in (False, True)
    )
    torch.testing.assert_close(first, matrix @ weights * 1.1)
    torch.testing.assert_close(exact, 1.1 * first)  # times I + η∇²J
    moved = loss({"w": weights + 1e-4 * ascent}) - loss({"w": weights})
    torch.testing.assert_close(moved, 1e-4 * ascent @ (matrix @ weights), rtol=1e-2, atol=0.0)


def test_the_spread_of_rewards_is_a_half_where_all_tie():
    rewards, present = drawn(4, 3), torch.tensor([True, True, True])
    gaps = [(rewards[:, i] - rewards[:, j]).abs() for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(
        functional.reward_spread(rewards, present.expand(4, 3)), torch.sigmoid(torch.stack(gaps)).mean(0)
    )
    assert float(functional.reward_spread(torch.ones(3), present)) == 0.5
    assert float(functional.reward_spread(torch.ones(3), present & False)) == 0


def test_contrastive_losses_do_not_depend_on_lengths_and_are_log_n_without_signal():
    first, second = drawn(5, 4), drawn(5, 4, seed=1)
    found = functional.contrastive(first, second, temperature=0.1)
    torch.testing.assert_close(functional.contrastive(3 * first, 0.5 * second, temperature=0.1), found)
    same = torch.ones(5, 4, dtype=DOUBLE)
    torch.testing.assert_close(
        functional.contrastive(same, same, temperature=0.1), torch.full((5,), 5.0, dtype=DOUBLE).log()
    )


def test_conditional_rewards_cancel_terms_of_the_response_and_not_of_the_prompt():
    satisfied, violated = drawn(4), drawn(4, seed=1)
    found = reward_losses.conditional_bradley_terry(satisfied, violated)
    of_response = reward_losses.conditional_bradley_terry(satisfied + 3, violated + 3)
    torch.testing.assert_close(of_response, found)
    assert not reward_losses.conditional_bradley_terry(satisfied + 3, violated).allclose(found)


MARGINS = st.lists(st.floats(-5, 5), min_size=1, max_size=20)


@given(MARGINS, st.floats(0.05, 1.0))
def test_the_pairs_kept_are_those_with_the_smallest_loss(margins, rate):
    margins = torch.tensor(margins, dtype=DOUBLE)
    kept = peer_review.keep_largest(margins, keep_rate=rate)
    assert kept.sum() == max(1, round(rate * len(margins)))
    if not kept.all():
        assert -logsigmoid(margins[kept]).max() <= -logsigmoid(margins[~kept]).min()


def test_reviews_exchange_with_the_models_and_keep_all_at_a_rate_of_one():
    first, second = drawn(9), drawn(9, seed=1)
    found, other = (functional.review(*pair, keep_rate=0.6) for pair in ((first, second), (second, first)))
    assert torch.equal(found.first, other.second)
    assert torch.equal(found.second, other.first)
    everything = functional.review(first, second, keep_rate=1.0)
    assert everything.first.all()
    assert everything.second.all()
    order = functional.easy_to_hard(first)
    assert (first[order].diff() <= 0).all()
    assert torch.equal(order.sort().values, torch.arange(9))


def test_pairs_without_a_margin_are_never_kept():
    margins = torch.tensor([torch.nan, 1.0, -1.0])
    assert peer_review.keep_largest(margins, keep_rate=0.5).tolist() == [False, True, False]
    assert peer_review.keep_largest(margins[:1], keep_rate=0.5).tolist() == [False]


def test_two_models_that_review_each_other_keep_clean_pairs():
    """400 pairs of linear rewards, 30 % with flipped labels; two models from different starts."""
    truth, features = drawn(5), drawn(400, 5, seed=1)
    labels = (features @ truth).sign()
    flipped = torch.rand(400, generator=torch.Generator().manual_seed(2)) < 0.3
    pairs = torch.where(flipped, -labels, labels).unsqueeze(1) * features
    models = [drawn(5, seed=3) * 0.1, drawn(5, seed=4) * 0.1]
    for step in range(100):
        margins = [pairs @ model for model in models]
        kept = functional.review(*margins, keep_rate=1.0 if step < 20 else 0.7)
        models = [
            model + 2.0 * (torch.sigmoid(-margin[keep]).unsqueeze(1) * pairs[keep]).mean(0)
            for model, margin, keep in zip(models, margins, kept, strict=True)
        ]
    kept = functional.review(*[pairs @ model for model in models], keep_rate=0.7)
    for keep in kept:
        assert flipped[keep].double().mean() < 0.05, "of 0.3 in the data"
    easy = functional.easy_to_hard(pairs @ models[0])
    assert flipped[easy[:100]].sum() < flipped[easy[-100:]].sum() / 10


def test_users_in_planted_groups_are_found():
    """Six users with two opposite tastes; hard EM with the exact M-step of a linear reward."""
    taste = drawn(4)
    signs = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=DOUBLE)
    users = torch.arange(6).repeat_interleave(20)
    features = drawn(120, 4, seed=1)
    pairs = (signs[users] * (features @ taste)).sign().unsqueeze(1) * features
    rewards, assigned = drawn(2, 4, seed=2) * 0.1, user_groups.first_groups(6, 2)
    count, before = users.bincount(), None
    for _ in range(10):
        for _ in range(20):
            margins = pairs @ rewards.T
            own = torch.nn.functional.one_hot(assigned[users], 2).double()
            rewards = rewards + 0.05 * (own * torch.sigmoid(-margins)).T @ pairs
        likelihoods = functional.log_likelihoods(pairs @ rewards.T, users, 6)
        found = user_groups.best_groups(likelihoods)
        old, new = (likelihoods.gather(1, each.unsqueeze(1)).sum() for each in (assigned, found))
        assert new >= old, "the E-step never lowers the log-likelihood"
        assigned = user_groups.reseed_empty(found, likelihoods, count)
        before = new if before is None else before
    assert len(assigned[:3].unique()) == len(assigned[3:].unique()) == 1
    assert assigned[0] != assigned[3]
    assert new > before


def test_relabelled_groups_give_relabelled_assignments_and_large_rewards_stay_finite():
    likelihoods = -drawn(7, 3).abs()
    order = torch.tensor([2, 0, 1])
    assert torch.equal(
        order[user_groups.best_groups(likelihoods[:, order])], user_groups.best_groups(likelihoods)
    )
    margins = torch.tensor([[-2000.0, 2000.0]])
    found = functional.log_likelihoods(margins, torch.tensor([0]), 1)
    assert found.tolist() == [[-2000.0, 0.0]]


def test_extrapolation_goes_through_both_models():
    initial, trained = ({"w": drawn(3, seed=seed), "n": torch.tensor(seed)} for seed in (0, 1))
    for factor, expected in (
        (0.0, trained["w"]),
        (-1.0, initial["w"]),
        (1.0, 2 * trained["w"] - initial["w"]),
    ):
        found = functional.extrapolate(initial, trained, factor=factor)
        torch.testing.assert_close(found["w"], expected)
        assert found["n"] == 1
    half = {name: value.bfloat16() if name == "w" else value for name, value in trained.items()}
    assert functional.extrapolate(initial, half, factor=0.3)["w"].dtype == torch.bfloat16
    with pytest.raises(ContractError, match="1 differ, such as 'w'"):
        functional.extrapolate({**initial, "w": drawn(4)}, trained, factor=0.3)

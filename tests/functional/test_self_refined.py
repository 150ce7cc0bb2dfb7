"""Sr-DPO and Sr-IPO against values worked by hand and their closed forms, in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt import functional

DOUBLE = torch.float64
LOG_PROBS = st.lists(st.floats(-60.0, -0.5), min_size=4, max_size=4)
BETAS, STRENGTHS = st.floats(0.01, 2.0), st.floats(0.0, 0.9)

# a(y_w) = −10 + 12 = 2, a(y_l) = −9 + 8 = −1, h = 3; asked for quality: 1 − 3 = −2.
PAIR, ASKED = (-10.0, -9.0, -12.0, -8.0), (-9.0, -7.0, -10.0, -10.0)
LOSSES = {
    "sr_dpo": (functional.sr_dpo, functional.dpo),
    "sr_ipo": (functional.sr_ipo, functional.ipo),
}


def scalars(values, *, grad=False):
    return [torch.tensor(value, dtype=DOUBLE, requires_grad=grad) for value in values]


def slopes(loss, four):
    """The gradient with respect to the policy's two log-probs."""
    return torch.stack(torch.autograd.grad(loss, four[:2], retain_graph=True))


def margin(values):
    return (values[0] - values[2]) - (values[1] - values[3])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# --- by hand


def test_the_refinement_by_hand():
    # 0.1·((−9 + 10) − (−7 + 10)) = −0.2
    delta = functional.refinement(*scalars(ASKED, grad=True), beta=0.1)
    assert delta.item() == pytest.approx(-0.2)
    assert not delta.requires_grad


def test_sr_dpo_by_hand():
    # −log σ(0.1·3 + 0.5·0.2) = log(1 + e^−0.4) = log 1.670320
    result = functional.sr_dpo(*scalars(PAIR), torch.tensor(-0.2, dtype=DOUBLE), beta=0.1, strength=0.5)
    assert result.loss.item() == pytest.approx(0.513015, abs=1e-6)
    assert (result.chosen_reward.item(), result.rejected_reward.item()) == pytest.approx((0.2, -0.1))


def test_sr_ipo_by_hand():
    # (3 + 0.5·0.2 − 5)² = 1.9²: h without β, Δ with it, as the paper prints them
    result = functional.sr_ipo(*scalars(PAIR), torch.tensor(-0.2, dtype=DOUBLE), beta=0.1, strength=0.5)
    assert result.loss.item() == pytest.approx(3.61)
    assert (result.chosen_reward.item(), result.rejected_reward.item()) == pytest.approx((0.2, -0.1))


# --- what the refinement does


@pytest.mark.parametrize("name", LOSSES)
@given(values=LOG_PROBS, beta=BETAS, delta=st.floats(-5.0, 5.0))
def test_without_strength_nothing_is_refined(name, values, beta, delta):
    refined, plain = LOSSES[name]
    mine = refined(*scalars(values), torch.tensor(delta, dtype=DOUBLE), beta=beta, strength=0.0)
    for got, expected in zip(mine, plain(*scalars(values), beta=beta), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", LOSSES)
@given(values=LOG_PROBS, asked=LOG_PROBS, beta=BETAS, strength=STRENGTHS)
def test_at_the_reference_nothing_is_refined(name, values, asked, beta, strength):
    refined, plain = LOSSES[name]
    values, asked = [*values[:2], *values[:2]], [*asked[:2], *asked[:2]]
    delta = functional.refinement(*scalars(asked), beta=beta)
    four, other = scalars(values, grad=True), scalars(values, grad=True)
    mine = refined(*four, delta, beta=beta, strength=strength).loss
    expected = plain(*other, beta=beta).loss
    assert delta.item() == 0
    assert mine.item() == expected.item()
    assert torch.equal(slopes(mine, four), slopes(expected, other))
    if name == "sr_dpo":
        assert mine.item() == pytest.approx(math.log(2))


@given(LOG_PROBS, BETAS, st.floats(-5.0, 5.0), STRENGTHS)
def test_sr_dpo_gradient_is_weighed_by_the_refined_margin(values, beta, delta, strength):
    four = scalars(values, grad=True)
    loss = functional.sr_dpo(*four, torch.tensor(delta, dtype=DOUBLE), beta=beta, strength=strength).loss
    weight = sigmoid(-(beta * margin(values) - strength * delta))
    assert slopes(loss, four).tolist() == pytest.approx([-beta * weight, beta * weight], rel=1e-9)


@pytest.mark.parametrize(("delta", "louder"), [(2.0, True), (-2.0, False)])
def test_a_pair_already_held_apart_must_go_further(delta, louder):
    four, plain = scalars(PAIR, grad=True), scalars(PAIR, grad=True)
    refined = functional.sr_dpo(*four, torch.tensor(delta, dtype=DOUBLE), beta=0.1, strength=0.5).loss
    expected = functional.dpo(*plain, beta=0.1).loss
    assert (slopes(refined, four)[0].abs() > slopes(expected, plain)[0].abs()).item() == louder


# --- with an empty prompt p the second view is the first: what the stop-gradient is for


def with_empty_prompt(loss, four, *, beta, strength):
    return loss(*four, functional.refinement(*four, beta=beta), beta=beta, strength=strength).loss


@given(LOG_PROBS, BETAS, STRENGTHS)
def test_empty_prompt_has_the_value_of_a_smaller_beta_and_a_steeper_gradient(values, beta, strength):
    four, other = scalars(values, grad=True), scalars(values, grad=True)
    mine = with_empty_prompt(functional.sr_dpo, four, beta=beta, strength=strength)
    smaller = functional.dpo(*other, beta=beta * (1 - strength)).loss
    assert mine.item() == pytest.approx(smaller.item(), abs=1e-12)
    expected = slopes(smaller, other) / (1 - strength)
    torch.testing.assert_close(slopes(mine, four), expected, rtol=1e-9, atol=1e-15)


@given(LOG_PROBS, BETAS)
def test_at_full_strength_the_loss_is_constant_and_its_gradient_is_not_zero(values, beta):
    four = scalars(values, grad=True)
    loss = with_empty_prompt(functional.sr_dpo, four, beta=beta, strength=1.0)
    assert loss.item() == pytest.approx(math.log(2))
    assert slopes(loss, four).tolist() == pytest.approx([-beta / 2, beta / 2])


@given(LOG_PROBS, BETAS, st.floats(0.1, 0.9))
def test_without_the_stop_gradient_it_would_be_dpo_with_a_smaller_beta(values, beta, strength):
    four = scalars(values, grad=True)
    h = (four[0] - four[2]) - (four[1] - four[3])
    naive = -torch.nn.functional.logsigmoid(beta * h - strength * beta * h)
    collapsed = functional.dpo(*four, beta=beta * (1 - strength)).loss
    torch.testing.assert_close(slopes(naive, four), slopes(collapsed, four), rtol=1e-9, atol=1e-15)
    # Ours differs from it, by the factor of the test above, even if the Δ that comes in has a gradient.
    ours = functional.sr_dpo(*four, beta * h, beta=beta, strength=strength).loss
    torch.testing.assert_close(
        slopes(ours, four) * (1 - strength), slopes(naive, four), rtol=1e-9, atol=1e-15
    )
    assert (slopes(ours, four) != slopes(naive, four)).any()


# --- Sr-IPO


@given(st.floats(-5.0, 5.0), BETAS, STRENGTHS)
def test_sr_ipo_is_least_at_its_refined_target(delta, beta, strength):
    target = 1 / (2 * beta) + strength * delta
    four = scalars((target, 0.0, 0.0, 0.0), grad=True)
    loss = functional.sr_ipo(*four, torch.tensor(delta, dtype=DOUBLE), beta=beta, strength=strength).loss
    assert loss.item() == pytest.approx(0.0, abs=1e-18)
    assert slopes(loss, four).abs().max().item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("beta", "strength"), [(0.1, 0.5), (0.5, 0.3), (0.05, 1.0)])
def test_gradient_descent_on_sr_ipo_with_an_empty_prompt_ends_at_its_fixed_point(beta, strength):
    # h = 1/(2β) + λβh, that is h = 1/(2β(1 − λβ))
    four = scalars((0.0, 0.0, 0.0, 0.0), grad=True)
    for _ in range(400):
        slope = slopes(with_empty_prompt(functional.sr_ipo, four, beta=beta, strength=strength), four)
        with torch.no_grad():
            four[0] -= 0.1 * slope[0]
            four[1] -= 0.1 * slope[1]
    assert (four[0] - four[1]).item() == pytest.approx(1 / (2 * beta * (1 - strength * beta)))


# --- both


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    delta = torch.tensor(0.7, dtype=DOUBLE)
    loss = partial(LOSSES[name][0], beta=0.3, strength=0.5)
    four = scalars((-13.0, -12.0, -10.5, -8.0), grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: loss(*inputs, delta).loss, four)


@pytest.mark.parametrize("name", LOSSES)
def test_a_grid_of_pairs_holds_what_each_pair_gives(name):
    torch.manual_seed(0)
    policy, reference = -20 * torch.rand(2, 3, 4, dtype=DOUBLE)
    delta = torch.randn(3, 4, 4, dtype=DOUBLE)
    loss = partial(LOSSES[name][0], beta=0.3, strength=0.5)
    sides = [side for values in (policy, reference) for side in (values[:, :, None], values[:, None, :])]
    grid = loss(*sides, delta).loss
    for winner in range(4):
        for loser in range(4):
            four = policy[:, winner], policy[:, loser], reference[:, winner], reference[:, loser]
            torch.testing.assert_close(grid[:, winner, loser], loss(*four, delta[:, winner, loser]).loss)

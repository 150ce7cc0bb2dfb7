"""DPO's relatives against values worked by hand and their closed forms, in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_prefopt import functional

DOUBLE = torch.float64
LOG_PROBS = st.lists(st.floats(-60.0, -0.5), min_size=4, max_size=4)
LOSSES = {
    "dpo": partial(functional.dpo, beta=0.1),
    "cdpo": partial(functional.dpo, beta=0.1, label_smoothing=0.2),
    "ipo": partial(functional.ipo, beta=0.1),
    "hinge": partial(functional.hinge, beta=0.1),
    "robust": partial(functional.robust_dpo, beta=0.1, flip_rate=0.2),
    "dpop": partial(functional.dpop, beta=0.3, penalty=5.0),
    "f_dpo": partial(functional.f_dpo, beta=0.1, derivative=functional.forward_kl),
}

# The pair of most hand-worked values: a(y_w) = −10 + 12 = 2, a(y_l) = −9 + 8 = −1, h = 3.
PAIR = (-10.0, -9.0, -12.0, -8.0)


def scalars(values, *, grad=False):
    return [torch.tensor(value, dtype=DOUBLE, requires_grad=grad) for value in values]


def softplus(x):
    return math.log1p(math.exp(x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# --- by hand


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # −log σ(0.1·3) = log(1 + e^−0.3) = log 1.740818
        (partial(functional.dpo, beta=0.1), 0.554355),
        # 0.8·0.554355 + 0.2·(−log σ(−0.3)), and −log σ(−0.3) = 0.554355 + 0.3 = 0.854355
        (partial(functional.dpo, beta=0.1, label_smoothing=0.2), 0.614355),
        # (3 − 1/(2·0.1))² = (3 − 5)²
        (partial(functional.ipo, beta=0.1), 4.0),
        # 1 − 0.1·3
        (partial(functional.hinge, beta=0.1), 0.7),
        # β h = 1.5 > 1
        (partial(functional.hinge, beta=0.5), 0.0),
        # (0.8·0.554355 − 0.2·0.854355)/0.6 = (0.443484 − 0.170871)/0.6
        (partial(functional.robust_dpo, beta=0.1, flip_rate=0.2), 0.454355),
        # a(y_w) = 2 > 0: no penalty, hence DPO
        (partial(functional.dpop, beta=0.1, penalty=50.0), 0.554355),
    ],
)
def test_loss_by_hand(loss, expected):
    result = loss(*scalars(PAIR))
    assert result.loss.item() == pytest.approx(expected, abs=1e-6)


def test_dpop_by_hand_where_the_chosen_response_fell():
    # a(y_w) = −3, a(y_l) = −4, h = 1; −log σ(0.1·(1 − 5·3)) = log(1 + e^1.4) = log 5.0552
    result = functional.dpop(*scalars((-13.0, -12.0, -10.0, -8.0)), beta=0.1, penalty=5.0)
    assert result.loss.item() == pytest.approx(1.620417, abs=1e-6)


@pytest.mark.parametrize(
    ("derivative", "chosen", "rejected"),
    [
        # a = 2 and −1. 1 − e^−2 = 0.864665, 1 − e^1 = −1.718282
        (functional.forward_kl, 0.864665, -1.718282),
        # log 2 − log(1 + e^−2) = 0.693147 − 0.126928; log 2 − log(1 + e) = 0.693147 − 1.313262
        (functional.jensen_shannon, 0.566219, -0.620115),
        # α = 1/2: 2(1 − e^−1) = 1.264241, 2(1 − e^0.5) = −1.297443
        (partial(functional.alpha_divergence, alpha=0.5), 1.264241, -1.297443),
    ],
)
def test_f_dpo_by_hand(derivative, chosen, rejected):
    result = functional.f_dpo(*scalars(PAIR), beta=0.5, derivative=derivative)
    assert result.chosen_reward.item() == pytest.approx(0.5 * chosen, abs=1e-6)
    assert result.rejected_reward.item() == pytest.approx(0.5 * rejected, abs=1e-6)
    assert result.loss.item() == pytest.approx(softplus(-0.5 * (chosen - rejected)), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "f_dpo"])
def test_rewards_are_beta_times_the_log_ratio_and_detached(name):
    beta = LOSSES[name].keywords["beta"]
    result = LOSSES[name](*scalars(PAIR, grad=True))
    assert result.chosen_reward.item() == pytest.approx(2 * beta)
    assert result.rejected_reward.item() == pytest.approx(-beta)
    assert result.loss.requires_grad
    assert not result.chosen_reward.requires_grad
    assert not result.rejected_reward.requires_grad


# --- all of them


@pytest.mark.parametrize("name", LOSSES)
def test_a_grid_of_pairs_holds_what_each_pair_gives(name):
    torch.manual_seed(0)
    policy, reference = -20 * torch.rand(2, 3, 4, dtype=DOUBLE)
    grid = LOSSES[name](policy[:, :, None], policy[:, None, :], reference[:, :, None], reference[:, None, :])
    assert grid.loss.shape == (3, 4, 4)
    assert grid.chosen_reward.shape == (3, 4, 1)
    for winner in range(4):
        for loser in range(4):
            pair = LOSSES[name](
                policy[:, winner], policy[:, loser], reference[:, winner], reference[:, loser]
            )
            torch.testing.assert_close(grid.loss[:, winner, loser], pair.loss)
            torch.testing.assert_close(grid.chosen_reward[:, winner, 0], pair.chosen_reward)
            torch.testing.assert_close(grid.rejected_reward[:, 0, loser], pair.rejected_reward)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    inputs = scalars((-13.0, -12.0, -10.5, -8.0), grad=True)
    assert torch.autograd.gradcheck(lambda *four: LOSSES[name](*four).loss, inputs)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chosen", [-1e3, 0.0, 1e3])
@pytest.mark.parametrize("rejected", [-1e3, 0.0, 1e3])
@pytest.mark.parametrize(
    "derivative", [functional.forward_kl, partial(functional.alpha_divergence, alpha=0.9)]
)
def test_losses_and_gradients_are_finite_at_huge_log_ratios(name, chosen, rejected, derivative):
    loss = LOSSES[name]
    if name == "f_dpo":
        loss = partial(functional.f_dpo, beta=0.1, derivative=derivative)
    inputs = [torch.tensor(value, requires_grad=True) for value in (chosen - 2e3, rejected - 2e3)]
    result = loss(*inputs, torch.tensor(-2e3), torch.tensor(-2e3))
    result.loss.backward()
    assert all(part.isfinite().all() for part in result)
    # Squared too: a gradient norm is a sum of squares, in float32.
    assert all(value.grad.square().isfinite() for value in inputs)


# --- closed forms: DPO


@given(LOG_PROBS, st.floats(0.01, 2.0))
def test_dpo_is_log_2_at_the_reference(values, beta):
    chosen, rejected = scalars(values[:2])
    assert functional.dpo(chosen, rejected, chosen, rejected, beta=beta).loss.item() == pytest.approx(
        math.log(2)
    )


@given(LOG_PROBS, st.floats(0.01, 2.0))
def test_dpo_gradient_is_beta_sigma_of_minus_the_margin(values, beta):
    inputs = scalars(values, grad=True)
    functional.dpo(*inputs, beta=beta).loss.backward()
    margin = (values[0] - values[2]) - (values[1] - values[3])
    expected = beta * sigmoid(-beta * margin)
    assert inputs[0].grad.item() == pytest.approx(-expected, rel=1e-9)
    assert inputs[1].grad.item() == pytest.approx(expected, rel=1e-9)


@given(LOG_PROBS, st.floats(-30.0, 30.0))
def test_dpo_ignores_what_is_added_to_both_responses(values, shift):
    plain = functional.dpo(*scalars(values), beta=0.1).loss
    chosen, rejected, *reference = values
    shifted = functional.dpo(*scalars((chosen + shift, rejected + shift, *reference)), beta=0.1).loss
    assert shifted.item() == pytest.approx(plain.item(), abs=1e-12)


@given(LOG_PROBS)
def test_dpo_of_the_swapped_pair_differs_by_the_margin(values):
    a, b, c, d = scalars(values)
    margin = (a - c) - (b - d)
    difference = functional.dpo(a, b, c, d, beta=0.1).loss - functional.dpo(b, a, d, c, beta=0.1).loss
    assert difference.item() == pytest.approx(-0.1 * margin.item(), abs=1e-12)


@given(st.floats(0.01, 0.49), st.floats(0.05, 2.0))
def test_conservative_dpo_rests_at_the_logit_of_the_smoothing(smoothing, beta):
    margin = math.log((1 - smoothing) / smoothing) / beta
    chosen, rejected, *reference = scalars((margin, 0.0, 0.0, 0.0), grad=True)
    functional.dpo(chosen, rejected, *reference, beta=beta, label_smoothing=smoothing).loss.backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-12)


# --- closed forms: IPO and hinge


@given(LOG_PROBS, st.floats(0.01, 2.0))
def test_ipo_gradient_draws_the_margin_to_its_target(values, beta):
    inputs = scalars(values, grad=True)
    functional.ipo(*inputs, beta=beta).loss.backward()
    margin = (values[0] - values[2]) - (values[1] - values[3])
    assert inputs[0].grad.item() == pytest.approx(2 * (margin - 1 / (2 * beta)), abs=1e-9)


def test_ipo_is_zero_at_its_target():
    assert functional.ipo(*scalars((5.0, 0.0, 0.0, 0.0)), beta=0.1).loss.item() == 0


@pytest.mark.parametrize(("margin", "slope"), [(9.9, -0.1), (10.1, 0.0)])
def test_hinge_gradient_ends_at_one_over_beta(margin, slope):
    inputs = scalars((margin, 0.0, 0.0, 0.0), grad=True)
    functional.hinge(*inputs, beta=0.1).loss.backward()
    assert inputs[0].grad.item() == pytest.approx(slope)


# --- closed forms: robust DPO


@given(LOG_PROBS, st.floats(0.0, 0.45))
def test_robust_dpo_is_unbiased_under_flips(values, rate):
    a, b, c, d = scalars(values)
    loss = partial(functional.robust_dpo, beta=0.1, flip_rate=rate)
    expected = (1 - rate) * loss(a, b, c, d).loss + rate * loss(b, a, d, c).loss
    clean = functional.dpo(a, b, c, d, beta=0.1).loss
    assert expected.item() == pytest.approx(clean.item(), abs=1e-9)


@given(LOG_PROBS, st.floats(0.0, 0.45))
def test_robust_dpo_is_the_papers_quotient(values, rate):
    a, b, c, d = scalars(values)
    z = 0.1 * ((a - c) - (b - d)).item()
    expected = ((1 - rate) * softplus(-z) - rate * softplus(z)) / (1 - 2 * rate)
    assert functional.robust_dpo(a, b, c, d, beta=0.1, flip_rate=rate).loss.item() == pytest.approx(
        expected, abs=1e-9
    )


@given(LOG_PROBS, st.floats(0.0, 0.45))
def test_robust_dpo_gradient_weight(values, rate):
    inputs = scalars(values, grad=True)
    functional.robust_dpo(*inputs, beta=0.1, flip_rate=rate).loss.backward()
    z = 0.1 * ((values[0] - values[2]) - (values[1] - values[3]))
    assert inputs[0].grad.item() == pytest.approx(-0.1 * (sigmoid(-z) + rate / (1 - 2 * rate)), rel=1e-9)


# --- closed forms: DPOP


@given(LOG_PROBS, st.floats(0.0, 100.0))
def test_dpop_is_dpo_while_the_chosen_response_is_above_the_reference(values, penalty):
    a, b, c, d = scalars(values)
    c = torch.minimum(a, c)
    assert torch.equal(
        functional.dpop(a, b, c, d, beta=0.3, penalty=penalty).loss, functional.dpo(a, b, c, d, beta=0.3).loss
    )


@given(LOG_PROBS)
def test_dpop_without_penalty_is_dpo(values):
    four = scalars(values)
    torch.testing.assert_close(
        functional.dpop(*four, beta=0.3, penalty=0.0).loss, functional.dpo(*four, beta=0.3).loss
    )


@pytest.mark.parametrize("penalty", [0.5, 5.0, 50.0])
def test_dpop_gradients_stand_as_one_plus_the_penalty(penalty):
    inputs = scalars((-10.1, -9.0, -10.0, -9.0), grad=True)
    functional.dpop(*inputs, beta=0.3, penalty=penalty).loss.backward()
    assert (inputs[0].grad / inputs[1].grad).item() == pytest.approx(-(1 + penalty))


def test_dpop_has_dpos_gradient_at_the_kink():
    # Policy and reference agree on the chosen response, as before the first step.
    inputs = scalars((-10.0, -9.0, -10.0, -8.0), grad=True)
    slopes = torch.autograd.grad(functional.dpop(*inputs, beta=0.3, penalty=50.0).loss, inputs[:2])
    expected = torch.autograd.grad(functional.dpo(*inputs, beta=0.3).loss, inputs[:2])
    assert slopes == expected
    assert expected[0] < 0


def test_hinge_has_no_gradient_at_the_kink():
    inputs = scalars((-8.0, -10.0, -10.0, -10.0), grad=True)  # h = 2 = 1/β
    (slope,) = torch.autograd.grad(functional.hinge(*inputs, beta=0.5).loss, inputs[0])
    assert slope == 0


# --- closed forms: f-DPO

GENERATORS = {
    "reverse_kl": (functional.reverse_kl, lambda u: u * u.log()),
    "forward_kl": (functional.forward_kl, lambda u: -u.log()),
    "jensen_shannon": (functional.jensen_shannon, lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log()),
    **{
        f"alpha_{alpha}": (
            partial(functional.alpha_divergence, alpha=alpha),
            lambda u, alpha=alpha: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
        )
        for alpha in (0.1, 0.5, 0.9)
    },
}


def slope(function, u):
    u = u.detach().requires_grad_()
    return torch.autograd.grad(function(u).sum(), u)[0]


@pytest.mark.parametrize("name", GENERATORS)
def test_derivatives_are_those_of_their_generators(name):
    derivative, generator = GENERATORS[name]
    log_ratio = torch.linspace(-6, 6, 25, dtype=DOUBLE)
    at_one = slope(generator, torch.ones(1, dtype=DOUBLE))
    expected = slope(generator, log_ratio.exp()) - at_one
    torch.testing.assert_close(derivative(log_ratio), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_vanish_at_one_as_divergences_must(name):
    # Guards the table above: a wrong generator would make the test before it meaningless.
    assert GENERATORS[name][1](torch.ones(1, dtype=DOUBLE)).item() == pytest.approx(0.0)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_derivatives_rise_from_zero_at_one(name, dtype):
    derivative, _ = GENERATORS[name]
    assert derivative(torch.zeros((), dtype=dtype)).item() == 0
    # JS flattens to log 2 above log u ≈ 15 and all below 1e-7 of it vanishes in float32.
    upper = 10.0 if name != "reverse_kl" else 1e3
    values = derivative(torch.linspace(-1e3, upper, 200, dtype=dtype))
    assert (values.diff() > 0).all()


@given(LOG_PROBS, st.floats(0.01, 2.0))
def test_f_dpo_under_reverse_kl_is_dpo(values, beta):
    ours, dpo = (
        functional.f_dpo(*scalars(values), beta=beta, derivative=functional.reverse_kl),
        functional.dpo(*scalars(values), beta=beta),
    )
    for mine, theirs in zip(ours, dpo, strict=True):
        assert mine.item() == pytest.approx(theirs.item(), abs=1e-12)


@settings(max_examples=50)
@given(st.floats(-10.0, 10.0))
def test_alpha_runs_from_reverse_to_forward_kl(log_ratio):
    (a,) = scalars((log_ratio,))
    near_zero = functional.alpha_divergence(a, alpha=1e-7).item()
    assert near_zero == pytest.approx(functional.reverse_kl(a).item(), abs=1e-5)
    assert functional.alpha_divergence(a, alpha=1.0).item() == pytest.approx(
        functional.forward_kl(a).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_all_divergences_agree_near_the_reference_up_to_their_curvature(name):
    # f″(1) is 1, but 1/2 for Jensen-Shannon: there f-DPO with 2β starts as DPO with β.
    curvature = 0.5 if name == "jensen_shannon" else 1.0
    inputs = scalars((1e-6, 0.0, 0.0, 0.0), grad=True)
    functional.f_dpo(*inputs, beta=0.1 / curvature, derivative=GENERATORS[name][0]).loss.backward()
    assert inputs[0].grad.item() == pytest.approx(-0.05, rel=1e-5)

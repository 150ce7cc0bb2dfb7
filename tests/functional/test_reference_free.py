"""SimPO and ORPO against values worked by hand and their closed forms, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt import functional

DOUBLE = torch.float64
MEAN = st.floats(-20.0, -1e-3)


def scalars(*values, grad=False):
    return [torch.tensor(value, dtype=DOUBLE, requires_grad=grad) for value in values]


def logsigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def test_simpo_by_hand():
    # 2.5·(−1.0 + 1.2) − 1.4 = −0.9; −log σ(−0.9) = log(1 + e^0.9) = log 3.459603
    result = functional.simpo(*scalars(-1.0, -1.2), beta=2.5, gamma=1.4)
    assert result.loss.item() == pytest.approx(1.241154, abs=1e-6)
    assert result.chosen_reward.item() == pytest.approx(-2.5)
    assert result.rejected_reward.item() == pytest.approx(-3.0)


def test_orpo_by_hand():
    # log odds: −0.5 − log(1 − e^−0.5) = −0.5 + 0.932752 = 0.432752; −1 − log(1 − e^−1) = −1 + 0.458675
    # = −0.541325. Log odds ratio 0.974077, −log σ of it log(1 + 0.377540) = 0.320300; 0.5 + 0.1·that.
    result = functional.orpo(*scalars(-0.5, -1.0), weight=0.1)
    assert result.loss.item() == pytest.approx(0.532030, abs=1e-6)
    assert result.chosen_reward.item() == pytest.approx(-0.05)
    assert result.rejected_reward.item() == pytest.approx(-0.1)


def test_rewards_carry_no_gradient():
    for result in (
        functional.simpo(*scalars(-1.0, -2.0, grad=True), beta=1.0, gamma=0.0),
        functional.orpo(*scalars(-1.0, -2.0, grad=True), weight=1.0),
    ):
        assert result.loss.requires_grad
        assert not result.chosen_reward.requires_grad
        assert not result.rejected_reward.requires_grad


@pytest.mark.parametrize(
    "loss",
    [
        lambda *two: functional.simpo(*two, beta=2.0, gamma=1.0).loss,
        lambda *two: functional.orpo(*two, weight=0.5).loss,
    ],
)
def test_gradients_match_finite_differences(loss):
    assert torch.autograd.gradcheck(loss, scalars(-0.3, -1.7, grad=True))


@given(MEAN, MEAN, st.integers(1, 50))
def test_simpo_without_margin_is_dpo_without_reference(chosen, rejected, length):
    sums = scalars(chosen * length, rejected * length)
    nothing = torch.zeros((), dtype=DOUBLE)
    dpo = functional.dpo(*sums, nothing, nothing, beta=2.0 / length).loss
    simpo = functional.simpo(*scalars(chosen, rejected), beta=2.0, gamma=0.0).loss
    assert simpo.item() == pytest.approx(dpo.item(), abs=1e-10)


def test_simpo_is_log_2_where_the_reward_margin_is_gamma():
    assert functional.simpo(*scalars(-1.0, -1.5), beta=2.0, gamma=1.0).loss.item() == pytest.approx(
        math.log(2)
    )


@given(MEAN, MEAN)
def test_the_odds_ratio_is_at_least_the_probability_ratio(chosen, rejected):
    loss = (
        functional.orpo(*scalars(chosen, rejected), weight=1.0).loss.item() + chosen
    )  # −log σ(log odds ratio)
    plain = -logsigmoid(chosen - rejected)
    assert loss <= plain + 1e-9 if chosen >= rejected else loss >= plain - 1e-9


@given(MEAN, MEAN)
def test_orpo_differs_from_asft_by_the_log_of_a_probability(chosen, rejected):
    # ASFT's −log σ(logit p_w) − log σ(−logit p_l) is −log p_w − log(1 − p_l); the difference to ORPO's
    # alignment term is log[p_w(1 − p_l) + p_l(1 − p_w)] ≤ 0.
    orpo = functional.orpo(*scalars(chosen, rejected), weight=1.0).loss.item() + chosen
    p_w, p_l = math.exp(chosen), math.exp(rejected)
    asft = -chosen - math.log1p(-p_l)
    assert orpo == pytest.approx(asft + math.log(p_w * (1 - p_l) + p_l * (1 - p_w)), rel=1e-6, abs=1e-9)
    assert orpo <= asft + 1e-9


def test_orpo_of_unlikely_responses_is_that_of_their_probabilities():
    loss = functional.orpo(*scalars(-40.0, -41.0), weight=1.0).loss.item() - 40.0
    assert loss == pytest.approx(-logsigmoid(1.0), abs=1e-12)


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e3, -1e-9)])
def test_orpo_is_finite_at_certainty(chosen, rejected):
    inputs = [torch.tensor(value, requires_grad=True) for value in (chosen, rejected)]
    loss = functional.orpo(*inputs, weight=0.1).loss
    loss.backward()
    assert loss.isfinite()
    assert all(value.grad.isfinite() for value in inputs)

"""KTO against values worked by hand and its closed forms, in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt.functional import kto

VALUE = st.floats(-60.0, 60.0)
PLAIN = partial(kto, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)


def run(policy, reference, desirable, kl, loss=PLAIN):
    policy, reference, kl = (torch.tensor(x, dtype=torch.float64) for x in (policy, reference, kl))
    policy.requires_grad_()
    return policy, loss(policy, reference, torch.tensor(desirable), kl)


def test_by_hand():
    # a = 3 and −2, z = 1. Desirable: 1.5·(1 − σ(0.1·2)) = 1.5·0.450166; undesirable: 0.5·(1 − σ(0.1·3))
    # = 0.5·0.425557.
    loss = partial(kto, beta=0.1, desirable_weight=1.5, undesirable_weight=0.5)
    _, result = run([-10.0, -9.0], [-13.0, -7.0], [True, False], 1.0, loss)
    assert result.loss.tolist() == pytest.approx([0.675249, 0.212779], abs=1e-6)
    assert result.reward.tolist() == pytest.approx([0.3, -0.2])
    assert not result.reward.requires_grad


@given(VALUE, st.floats(0.0, 20.0), VALUE)
def test_shifting_log_ratio_and_reference_point_together_changes_nothing(ratio, kl, shift):
    plain = run([ratio] * 2, [0.0] * 2, [True, False], kl)[1].loss
    shifted = run([ratio + shift] * 2, [0.0] * 2, [True, False], kl + shift)[1].loss
    torch.testing.assert_close(plain, shifted, rtol=0, atol=1e-12)


@given(VALUE, st.floats(0.0, 20.0))
def test_desirable_and_undesirable_of_one_response_sum_to_one(ratio, kl):
    assert run([ratio] * 2, [0.0] * 2, [True, False], kl)[1].loss.sum().item() == pytest.approx(1.0)


@given(VALUE, st.floats(0.0, 20.0))
def test_gradient_is_beta_s_times_one_minus_s(ratio, kl):
    policy, result = run([ratio] * 2, [0.0] * 2, [True, False], kl)
    result.loss.sum().backward()  # of independent entries
    s = 1 / (1 + math.exp(-0.1 * (ratio - kl)))
    expected = 0.1 * s * (1 - s)
    assert policy.grad.tolist() == pytest.approx([-expected, expected], rel=1e-9, abs=1e-15)


@given(st.floats(-1e4, 1e4), st.booleans())
def test_loss_lies_between_zero_and_its_weight(ratio, desirable):
    loss = partial(kto, beta=0.1, desirable_weight=2.0, undesirable_weight=2.0)
    assert 0 <= run([ratio], [0.0], [desirable], 0.0, loss)[1].loss.item() <= 2


def test_is_one_half_at_the_reference():
    assert run([-5.0, -7.0], [-5.0, -7.0], [True, False], 0.0)[1].loss.tolist() == [0.5, 0.5]

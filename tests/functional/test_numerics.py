"""log(1 − eˣ) and the exponential with a tangent."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt.functional.numerics import EXPONENT_LIMIT, log1mexp, tangent_expm1

getcontext().prec = 350


def exact_log1mexp(x: float) -> float:
    """log(1 − eˣ) in 350 digits, of which e⁻⁷⁰⁰ takes 304."""
    return float((1 - Decimal(x).exp()).ln())


@given(st.floats(min_value=-700.0, max_value=-1e-14))
def test_log1mexp_is_exact_in_double_precision(x):
    ours = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    assert ours == pytest.approx(exact_log1mexp(x), rel=1e-13, abs=0)


def test_log1mexp_by_hand():
    # 1 − e^(−log 2) = 1/2. Near 0, 1 − e^x ≈ −x, so log(1e-6) = −13.8155 (+ x/2); far below, ≈ −e^x.
    x = torch.tensor([-math.log(2.0), -1e-6, -80.0])
    expected = torch.tensor([-0.693147, -13.815511, -math.exp(-80.0)])
    torch.testing.assert_close(log1mexp(x), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_has_finite_gradients_everywhere(dtype):
    x = torch.tensor(
        [0.0, -1e-30, -1e-12, -math.log(2.0), -1.0, -100.0, -1e4], dtype=dtype, requires_grad=True
    )
    value = log1mexp(x)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad.isfinite().all()
    # At 0 it is −∞ and stands for what rounds to it, as steep as about there.
    assert x.grad[0].item() == pytest.approx(-1 / torch.finfo(dtype).eps)
    assert value[0] <= value[1]
    # d/dx log(1 − e^x) = −1/(e^−x − 1): at −1, −1/(e − 1) = −0.5820
    assert x.grad[4].item() == pytest.approx(-0.581977, rel=1e-5)


def test_log1mexp_passes_gradcheck_on_both_sides_of_the_switch():
    x = torch.tensor([-0.01, -0.5, -0.6931, -0.6932, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log1mexp, (x,))


def test_tangent_expm1_is_expm1_up_to_the_limit_and_straight_beyond():
    x = torch.tensor([-1e3, -1.0, 1e-9, 20.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(tangent_expm1(x), torch.expm1(x), rtol=1e-15, atol=0)
    beyond = torch.tensor([31.0, 32.0, 1e3], dtype=torch.float64, requires_grad=True)
    value = tangent_expm1(beyond)
    value.sum().backward()
    slope = math.exp(EXPONENT_LIMIT)
    assert beyond.grad.tolist() == pytest.approx([slope] * 3)
    assert value.tolist() == pytest.approx([slope * 2, slope * 3, slope * (1 + 970)], rel=1e-12)


def test_tangent_expm1_gradient_is_that_of_the_exponential_below_the_limit():
    x = torch.tensor([-40.0, -1.0, 0.0, 3.0], requires_grad=True)
    tangent_expm1(x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp(), rtol=1e-6, atol=0)


def test_the_slope_at_the_limit_squares_within_float32():
    assert math.isfinite(torch.tensor(math.exp(EXPONENT_LIMIT)).square().item())

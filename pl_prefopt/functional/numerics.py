"""Elementary functions whose values and gradients stay exact and finite where the textbook form does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXPONENT_LIMIT = 30.0
"""Where ``tangent_expm1`` leaves the exponential: e³⁰ ≈ 1e13, whose square still fits in float32."""


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 − eˣ) for x ≤ 0.

    With x = log p this is log(1 − p). Two forms are exact on their side of −log 2 (Mächler 2012, eq. 7):
    log(−expm1(x)) above it, log1p(−eˣ) below. At x = 0 value and gradient are −∞. What is returned there is
    the value at −√tiny, the last whose gradient can be squared, and the gradient −1/ε with ε the machine
    epsilon: a model's log-prob of 0 stands for any that rounds to it, the nearest about −ε. So a probability
    of 1 is pushed down, as are those near it, and with a force that its logits' own rounding doesn't blow up.

    Args:
        x: any shape, x ≤ 0.

    Returns:
        The same shape; finite for finite x, with a finite gradient.

    Examples:
        >>> [f"{value:.4g}" for value in log1mexp(torch.tensor([-1e-6, -math.log(2.0), -50.0]))]
        ['-13.82', '-0.6931', '-1.929e-22']
    """
    limit = -math.sqrt(torch.finfo(x.dtype).tiny)
    at_zero = torch.where(x > limit, x, 0.0)
    x = x.clamp(max=limit)
    near = x > -math.log(2.0)
    # Each form gets a harmless argument where the other is chosen: `where` alone would still multiply
    # the unused form's infinite gradient by zero, which is NaN.
    near_value = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    far_value = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    # The clamp has no gradient where it holds; the last term has one there, and the value 0.
    slope = (at_zero - at_zero.detach()) / torch.finfo(x.dtype).eps
    return torch.where(near, near_value, far_value) - slope


def tangent_expm1(x: Tensor) -> Tensor:
    """Return eˣ − 1 up to x = 30 and the tangent of eˣ − 1 at 30 beyond.

    A sequence's log-ratio may be in the hundreds, where eˣ overflows. The tangent keeps what matters
    there, the order and a gradient that points the right way, in numbers that float32 can square.

    Args:
        x: any shape.

    Returns:
        The same shape, strictly increasing in x, finite for |x| far beyond 1e3.

    Examples:
        >>> [f"{value:.5g}" for value in tangent_expm1(torch.tensor([0.0, 1e-7, 31.0]))]
        ['0', '1e-07', '2.1373e+13']
    """
    # Each part's gradient is exactly 0 on the other's side. With x − clamp(x) for the excess, e³⁰ would
    # be added and subtracted in every gradient and drown it.
    excess = (x - EXPONENT_LIMIT).relu()
    inside = x.clamp(max=EXPONENT_LIMIT)
    # expm1 has the exact value near 0, but autograd takes its gradient as value + 1, which loses all
    # digits far below 0; exp has the exact gradient everywhere.
    exponential = torch.where(inside > -1.0, torch.expm1(inside), torch.exp(inside) - 1.0)
    return exponential + math.exp(EXPONENT_LIMIT) * excess

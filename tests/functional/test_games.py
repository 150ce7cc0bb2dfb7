"""Preference games on three responses: equilibria, closed forms and rates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pl_prefopt.functional.games import (
    egpo,
    mirror_descent,
    nash_mp,
    online_ipo,
    proximal_step,
    residual,
    win_rates_against,
)

CYCLE = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()
START = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64).log_softmax(-1)
TILTED = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()


def kl(first, second) -> float:
    return (first.exp() * (first - second)).sum().item()


def iterated(step, policy, count: int, **settings):
    for _ in range(count):
        policy = step(
            policy, CYCLE, settings["reference"], **{k: v for k, v in settings.items() if k != "reference"}
        )
    return policy


def test_the_equilibrium_of_rock_paper_scissors_is_uniform_and_beats_nobody():
    found = iterated(nash_mp, START, 200, reference=UNIFORM, beta=0.2, eta=0.4)
    torch.testing.assert_close(found, UNIFORM)
    torch.testing.assert_close(win_rates_against(CYCLE, found), torch.full_like(found, 0.5))


def test_a_proximal_step_minimises_its_objective():
    beta, eta = 0.3, 0.7
    step = proximal_step(START, TILTED, CYCLE, UNIFORM, beta=beta, eta=eta)
    logits = step.clone().requires_grad_()
    policy = logits.log_softmax(-1)
    loss = (
        (1 - win_rates_against(CYCLE, TILTED)) @ policy.exp() / beta
        + (policy.exp() * (policy - UNIFORM)).sum()
        + (policy.exp() * (policy - START)).sum() / eta
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros(3, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("reference", [UNIFORM, TILTED])
def test_nash_mp_converges_at_its_rate(reference):
    beta = 0.2
    fixed = iterated(nash_mp, START, 500, reference=reference, beta=beta, eta=2 * beta)
    assert residual(fixed, CYCLE, reference, beta=beta) < 1e-13
    gaps, policy = [], START
    for _ in range(25):
        gaps.append(kl(fixed, policy))
        policy = nash_mp(policy, CYCLE, reference, beta=beta, eta=2 * beta)
    ratios = [after / before for before, after in itertools.pairwise(gaps)]
    assert max(ratios) <= 1 / (1 + 2 * beta)
    if reference is UNIFORM:
        # Linearised at the equilibrium: P's antisymmetric part has the eigenvalues ±i√3/2.
        turn = 1j * 2 * math.sqrt(3) / 2 / 3
        both = (1 + turn * (1 + turn) / (1 + 2 * beta)) / (1 + 2 * beta)
        assert ratios[-1] == pytest.approx(abs(both) ** 2, abs=1e-4)


def test_mirror_prox_converges_where_mirror_descent_does_not():
    settings = {"reference": UNIFORM, "beta": 0.05, "eta": 0.1}
    assert residual(iterated(nash_mp, START, 500, **settings), CYCLE, UNIFORM, beta=0.05) < 1e-13
    assert residual(iterated(mirror_descent, START, 500, **settings), CYCLE, UNIFORM, beta=0.05) > 1


def test_a_strong_penalty_gives_the_reference():
    found = iterated(nash_mp, START, 50, reference=TILTED, beta=1e6, eta=1.0)
    torch.testing.assert_close(found, TILTED, atol=1e-5, rtol=0)


def test_the_gradient_of_egpo_is_its_closed_form():
    logits = START.clone().requires_grad_()
    loss = online_ipo(logits, TILTED, CYCLE, UNIFORM, beta=0.2)
    (gradient,) = torch.autograd.grad(loss, logits)
    delta = START - UNIFORM - win_rates_against(CYCLE, TILTED) / 0.2
    torch.testing.assert_close(gradient, 4 / 3 * (delta - delta.mean()))


def test_the_last_iterate_of_egpo_converges_where_simultaneous_gradients_cycle():
    beta, lr = 0.05, 0.05
    ours = theirs = START
    for _ in range(1500):
        ours = egpo(ours, CYCLE, UNIFORM, beta=beta, lr=lr)
        rates = win_rates_against(CYCLE, theirs.log_softmax(-1))
        delta = theirs.log_softmax(-1) - UNIFORM - rates / beta
        theirs = theirs - lr * 4 / 3 * (delta - delta.mean())
    assert residual(ours.log_softmax(-1), CYCLE, UNIFORM, beta=beta) < 1e-12
    assert residual(theirs.log_softmax(-1), CYCLE, UNIFORM, beta=beta) > 1
    assert math.isfinite(theirs.sum().item())

"""Two-player preference games on a finite set of responses, solved exactly: EGPO, Nash-MP, mirror descent.

A policy is a tensor of log-probs [Y]; ``preferences`` [Y, Y] holds P(y ≻ y′) with P + Pᵀ = 1. The regularised
game max_π min_π′ P(π ≻ π′) − β KL(π‖π_ref) + β KL(π′‖π_ref) has one equilibrium π*, at which
log π* = log π_ref + P(·≻π*)/β + const.
"""

from __future__ import annotations

import torch
from torch import Tensor


def win_rates_against(preferences: Tensor, opponent: Tensor) -> Tensor:
    """Return P(y ≻ π) of each response, [Y].

    Args:
        preferences: [Y, Y], P(y ≻ y′), response by row.
        opponent: log-probs of π, [Y].

    Examples:
        >>> rock_paper_scissors = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
        >>> win_rates_against(rock_paper_scissors, torch.tensor([0.5, 0.5, 0.0]).log())
        tensor([0.7500, 0.2500, 0.5000])
    """
    return preferences @ opponent.exp()


def residual(policy: Tensor, preferences: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Return max − min over responses of log π − log π_ref − P(·≻π)/β: 0 at the equilibrium alone.

    Args:
        policy: log-probs [Y].
        preferences: [Y, Y].
        reference: log-probs [Y].
        beta: β > 0, the strength of the KL penalty.
    """
    delta = policy - reference - win_rates_against(preferences, policy) / beta
    return delta.max() - delta.min()


def proximal_step(
    policy: Tensor, opponent: Tensor, preferences: Tensor, reference: Tensor, *, beta: float, eta: float
) -> Tensor:
    """Return argmin_π (1/β)P(opponent ≻ π) + KL(π‖π_ref) + (1/η)KL(π‖π_k), as log-probs [Y].

    log π = [log π_k + η log π_ref + (η/β) P(·≻opponent)]/(1 + η) + const.

    Args:
        policy: π_k, the proximal centre.
        opponent: log-probs [Y].
        preferences: [Y, Y].
        reference: π_ref.
        beta: β > 0, the strength of the KL penalty.
        eta: η > 0, the step size.
    """
    gain = win_rates_against(preferences, opponent) / beta
    return ((policy + eta * (reference + gain)) / (1 + eta)).log_softmax(dim=-1)


def nash_mp(policy: Tensor, preferences: Tensor, reference: Tensor, *, beta: float, eta: float) -> Tensor:
    """Return π_{k+1} of Nash-MP (arXiv 2505.19731): mirror-prox, two steps from the same centre π_k.

    π_{k+½} is the proximal step against π_k, π_{k+1} that against π_{k+½}. With η = 2β the KL divergence to
    the equilibrium shrinks at least by 1/(1 + 2β) in each iteration. The closed form is a derivation of this
    project, checked numerically.

    Args:
        policy: π_k, log-probs [Y].
        preferences: [Y, Y].
        reference: π_ref.
        beta: β > 0, the strength of the KL penalty.
        eta: η > 0, the step size.
    """
    half = proximal_step(policy, policy, preferences, reference, beta=beta, eta=eta)
    return proximal_step(policy, half, preferences, reference, beta=beta, eta=eta)


def mirror_descent(
    policy: Tensor, preferences: Tensor, reference: Tensor, *, beta: float, eta: float
) -> Tensor:
    """Return one proximal step against π_k itself, which for a small β doesn't converge."""
    return proximal_step(policy, policy, preferences, reference, beta=beta, eta=eta)


def online_ipo(
    logits: Tensor, opponent: Tensor, preferences: Tensor, reference: Tensor, *, beta: float
) -> Tensor:
    """Return the loss of EGPO and of online IPO-1 for uniform pairs, a scalar (arXiv 2503.08942).

    Σ_{y,y′} [(δ_y − δ_y′)]²/Y² with δ = log(π/π_ref) − P(·≻opponent)/β, P without gradient. Its gradient in
    the logits is (4/Y)(δ − mean δ).

    Args:
        logits: of the policy, [Y], with gradient.
        opponent: log-probs [Y].
        preferences: [Y, Y].
        reference: log-probs [Y].
        beta: β > 0, the strength of the KL penalty.
    """
    gain = win_rates_against(preferences, opponent).detach() / beta
    delta = logits.log_softmax(dim=-1) - reference - gain
    return (delta.unsqueeze(0) - delta.unsqueeze(1)).square().mean()


def egpo(logits: Tensor, preferences: Tensor, reference: Tensor, *, beta: float, lr: float) -> Tensor:
    """Return the logits after one iteration of EGPO: extragradient on the loss of ``online_ipo``.

    A gradient step with P(·≻π_t) gives π_{t+½}; that step is undone, and the step from π_t is taken with
    P(·≻π_{t+½}) in its place.

    Args:
        logits: of π_t, [Y].
        preferences: [Y, Y].
        reference: log-probs [Y].
        beta: β > 0, the strength of the KL penalty.
        lr: the step size.
    """
    half = _descend(logits, logits, preferences, reference, beta=beta, lr=lr)
    return _descend(logits, half, preferences, reference, beta=beta, lr=lr)


def _descend(
    logits: Tensor, opponent: Tensor, preferences: Tensor, reference: Tensor, *, beta: float, lr: float
) -> Tensor:
    start = logits.detach().requires_grad_()
    with torch.enable_grad():
        loss = online_ipo(start, opponent.detach().log_softmax(dim=-1), preferences, reference, beta=beta)
        (gradient,) = torch.autograd.grad(loss, start)
    return logits.detach() - lr * gradient

"""MetaRM: a reward model's gradient after a step that separates responses to new prompts.

Dou et al., "MetaRM: Shifted Distributions Alignment via Meta-Learning", arXiv 2405.00438. Reconstructed: the
form of the difference measure and the steps' sizes were not found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def reward_spread(rewards: Tensor, present: Tensor) -> Tensor:
    """Return J, the mean of σ(|r_i − r_j|) over all pairs of a prompt's responses, [...]; ½ where all tie.

    Reconstructed. J grows with how well the reward model separates responses; it is 0 without a pair.

    Args:
        rewards: [..., R].
        present: bool [..., R].

    Examples:
        >>> reward_spread(torch.tensor([2.0, 0.0]), torch.tensor([True, True]))
        tensor(0.8808)
    """
    rewards = torch.where(present, rewards, 0.0)
    size = rewards.shape[-1]
    pairs = present.unsqueeze(-1) & present.unsqueeze(-2)
    pairs = pairs & torch.ones(size, size, dtype=torch.bool, device=rewards.device).triu(1)
    spread = torch.sigmoid((rewards.unsqueeze(-1) - rewards.unsqueeze(-2)).abs())
    return torch.where(pairs, spread, 0.0).sum(dim=(-2, -1)) / pairs.sum(dim=(-2, -1)).clamp(min=1)


def meta_gradient(
    weights: Weights,
    spread: Callable[[Weights], Tensor],
    loss: Callable[[Weights], Tensor],
    *,
    step: float,
    exact: bool = False,
) -> dict[str, Tensor]:
    """Return ∇L at θ′ = θ + η∇J(θ), by the names of ``weights``: the gradient to apply at θ.

    To first order L(θ′) = L + η⟨∇J, ∇L⟩, so that the gradient favours pairs that also help to separate the
    responses of J.

    Args:
        weights: θ.
        spread: J as a function of the weights, a scalar; such as the mean of ``reward_spread``.
        loss: L as a function of the weights, a scalar.
        step: η > 0. A value was not found, so there is no default.
        exact: whether to differentiate through θ′, too, which takes second derivatives of J; the two differ
            by O(η).

    Examples:
        J = θ and L = θ²: θ′ = 1 + 0.5, and the gradient there is 3.

        >>> weights = {"w": torch.tensor(1.0)}
        >>> meta_gradient(weights, lambda w: w["w"], lambda w: w["w"] ** 2, step=0.5)
        {'w': tensor(3.)}
    """
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    ascent = _gradient(spread(leaves), leaves, create_graph=exact)
    moved = {name: value + step * ascent[name] for name, value in leaves.items()}
    if not exact:
        moved = {name: value.detach().requires_grad_() for name, value in moved.items()}
    return _gradient(loss(moved), leaves if exact else moved)


def _gradient(value: Tensor, weights: Weights, *, create_graph: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        value, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))

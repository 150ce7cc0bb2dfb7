"""Multipliers of constrained RLHF: how much each reward counts, from how far it is from its threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pl_prefopt.checks import non_negative, positive
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.rewards import functions


class Multipliers(nn.Module):
    """λ_i = σ(μ_i), one per reward, that rises while the mean reward J_i is below its threshold θ_i.

    Moskovitz et al., arXiv 2310.04373: thresholds are the rewards beyond which a proxy no longer means an
    improvement, and μ descends Σ_i λ_i (J_i − θ_i) by SGD; learning rate and momentum are those of the
    authors' code. ``forward`` combines rewards as Σ_i λ_i r_i + (N − Σ_i λ_i) p. The state, μ and its
    momentum, is in the ``state_dict``.

    Args:
        thresholds: θ_i.
        learning_rate: of μ, above 0.
        momentum: in [0, 1).
        equality: whether λ_i = tanh(μ_i), which becomes negative above the threshold: rewards are then pushed
            down to it, too.

    Raises:
        ConfigError: if there are no thresholds, or a setting is out of range.

    Examples:
        >>> multipliers = Multipliers(thresholds=[1.0, 1.0])
        >>> multipliers.values
        tensor([0.5000, 0.5000])
        >>> multipliers.update(torch.tensor([0.0, 2.0]))
        >>> (multipliers.values - 0.5).sign()
        tensor([ 1., -1.])
    """

    mu: Tensor
    velocity: Tensor
    thresholds: Tensor

    def __init__(
        self,
        *,
        thresholds: Sequence[float],
        learning_rate: float = 0.01,
        momentum: float = 0.1,
        equality: bool = False,
    ) -> None:
        super().__init__()
        if not thresholds:
            raise ConfigError("expected `thresholds` to have one number per reward, got none.")
        if not non_negative("momentum", momentum) < 1:
            raise ConfigError(f"momentum must be below 1, but is {momentum}.")
        self.learning_rate, self.momentum = positive("learning_rate", learning_rate), momentum
        self.equality = equality
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)
        self.register_buffer("mu", torch.zeros(len(thresholds)))
        self.register_buffer("velocity", torch.zeros(len(thresholds)))

    @property
    def values(self) -> Tensor:
        """λ, [N]."""
        return self.mu.tanh() if self.equality else self.mu.sigmoid()

    def update(self, means: Tensor) -> None:
        """Take a step of SGD on μ.

        Args:
            means: J_i, the mean of each reward over the responses of a step, [N]; over all ranks.

        Raises:
            ContractError: if there is not one per threshold, or one is no finite number.
        """
        if means.shape != self.mu.shape or not means.isfinite().all():
            raise ContractError(
                f"expected the mean of each of {len(self.mu)} rewards, finite numbers, got {means.tolist()}: "
                "give one per threshold."
            )
        slope = 1 - self.values.square() if self.equality else self.values * (1 - self.values)
        self.velocity.mul_(self.momentum).add_(slope * (means.detach() - self.thresholds))
        self.mu.sub_(self.learning_rate * self.velocity)

    def forward(self, rewards: Tensor, penalty: Tensor) -> Tensor:
        """Return Σ_i λ_i r_i + (N − Σ_i λ_i) p, [...].

        Args:
            rewards: or advantages, [..., N].
            penalty: p, minus the KL divergence from the reference or its advantage, [...].
        """
        return functions.constrained_sum(rewards, penalty, self.values)

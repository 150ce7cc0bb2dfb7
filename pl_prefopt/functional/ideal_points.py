"""Users as ideal points: the rewards of PAL, mixtures of K prototypes per user.

Chen et al., "PAL: Pluralistic Alignment Framework for Learning from Heterogeneous Preferences", arXiv
2406.08469. Both forms give each response a reward, so that margins are differences and the losses those of
any reward: −log σ(z), or the hinge max(0, 1 − z). (The authors' ``dist_logistic`` feeds distances where
rewards belong, which pushes preferred responses away; here a reward is minus the distance.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def distance_reward(features: Tensor, points: Tensor, *, squared: bool = False) -> Tensor:
    """Return −‖f(x) − a_u‖, PAL-A's reward: the nearer to the user's ideal point, the better.

    The margin z = ‖f(x_l) − a_u‖ − ‖f(x_w) − a_u‖ changes under neither translations nor rotations of all
    points, and |z| ≤ ‖f(x_w) − f(x_l)‖. At distance 0 the gradient is 0.

    Args:
        features: f(x), [..., D].
        points: a_u, [..., D]; the two broadcast.
        squared: whether to take the square of the distance; margins are then affine in a_u.

    Examples:
        >>> distance_reward(torch.tensor([3.0, 4.0]), torch.zeros(2))
        tensor(-5.)
    """
    difference = features - points
    return -difference.square().sum(dim=-1) if squared else -torch.linalg.vector_norm(difference, dim=-1)


def direction_reward(features: Tensor, directions: Tensor, *, angle: bool = False) -> Tensor:
    """Return ⟨f(x), g_u(x)⟩ with the user's direction g_u = Σ_k w_k g_k(prompt), PAL-B's reward.

    Args:
        features: f(x), [..., D].
        directions: g_u, [..., D].
        angle: whether to take the cosine of the angle between the two, as the authors' code does.

    Examples:
        >>> direction_reward(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        tensor(3.)
        >>> direction_reward(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), angle=True)
        tensor(0.6000)
    """
    return cosine_similarity(features, directions, dim=-1) if angle else (features * directions).sum(dim=-1)

"""Several references as one: MRPO's weights, clip and virtual reference, and Multi-DPO.

K references give each response y the log-probs L_k(y) = log π_k(y|x), sums over its tokens; the first of
them is the policy's own start. Everything about references is constant: weights and ε carry no gradient.
Tensors of log-probs begin with the dimension K. Chosen and rejected broadcast as in
``pl_prefopt.functional.pairwise``: [K, B] against [K, B] for pairs, [K, B, R, 1] against [K, B, 1, R] for a
grid of them.

Le et al., "Multi-Reference Preference Optimization for Large Language Models", arXiv 2405.16388.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.functional.pairwise import PairwiseLoss


def adaptive_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Weigh each reference by how far it tells a pair apart: α_k = |L_k(y_w) − L_k(y_l)| / Σ_i |...|.

    Eq. 10 of arXiv 2405.16388 (ARWC), of log-probs that are not clipped. Where no reference tells the two
    apart each gets 1/K. Weights do not change when chosen and rejected change places.

    Args:
        chosen: L_k(y_w), [K, ...].
        rejected: L_k(y_l), [K, ...].

    Returns:
        [K, ...] weights ≥ 0 that add up to 1, detached.
    """
    gap = (chosen - rejected).detach().abs()
    total = gap.sum(dim=0, keepdim=True)
    return torch.where(total > 0, gap / total.where(total > 0, 1.0), 1 / len(gap))


def adaptive_epsilon(references: Tensor, others: Tensor, *, epsilon_max: float) -> Tensor:
    """Split ε_max between the two responses of a pair: ε(y) = ε_max |Σ_k L_k(y)| / Σ_y' |Σ_k L_k(y')|.

    Eq. 9 of arXiv 2405.16388, from log-probs that are not clipped; y' runs over the pair's two responses. The
    likelier a response is under the references, the closer they are held to the first of them. The two
    responses' ε add up to ε_max: swap the arguments to get the other's.

    Args:
        references: L_k(y), [K, ...].
        others: L_k of the other response of the pair, [K, ...].
        epsilon_max: ε_max ≥ 0.

    Returns:
        ε(y), in the shape to which the two broadcast without K, detached; 0 where all log-probs are 0.

    Examples:
        >>> adaptive_epsilon(torch.tensor([-10.0, -5.0]), torch.tensor([-20.0, -25.0]), epsilon_max=0.1)
        tensor(0.0250)
    """
    size, other = (values.detach().sum(dim=0).abs() for values in (references, others))
    total = size + other
    return epsilon_max * size / total.where(total > 0, 1.0)


def clip_to_first(references: Tensor, epsilon: Tensor) -> Tensor:
    """Hold each reference near the first: L̂_k = min(max(L_k, (1 + ε)L_1), (1 − ε)L_1), and L̂_1 = L_1.

    Eq. 8 of arXiv 2405.16388 (CTRO). Log-probs are at most 0, so (1 + ε)L_1 is the lower bound, and the upper
    one does nothing where ε ≥ 1.

    Args:
        references: L_k(y), [K, ...].
        epsilon: ε(y) ≥ 0, broadcastable to [...] or the other way round.

    Returns:
        L̂_k(y), [K, ...] in the shape to which the two broadcast.
    """
    first = references[:1]
    clipped = torch.minimum(torch.maximum(references[1:], (1 + epsilon) * first), (1 - epsilon) * first)
    return torch.cat([first.expand(1, *clipped.shape[1:]), clipped])


def log_harmonic_mean(references: Tensor, weights: Tensor) -> Tensor:
    """Return log π̃ of π̃ = (Σ_k α_k / π_k)⁻¹, which is −logsumexp_k(log α_k − L_k).

    MRPO's virtual reference, Prop. 1 of arXiv 2405.16388: the optimum of a lower bound of the objective
    with K references. (The paper's public code puts α_2 on π_1; here α_k stands at π_k, as in the paper.)
    On sequences it is nearly the most pessimistic reference, min_k(L_k − log α_k).

    Args:
        references: L_k(y), [K, ...].
        weights: α_k ≥ 0 that add up to 1, broadcastable to [K, ...].

    Returns:
        log π̃(y), [...]. π̃ is not normalised; its normaliser cancels in a pair.
    """
    return -torch.logsumexp(weights.log() - references, dim=0)


def log_geometric_mean(references: Tensor, weights: Tensor) -> Tensor:
    """Return log π̃ of π̃ = Π_k π_k^α_k, which is Σ_k α_k L_k.

    The exact optimum of the objective with K references, eq. 6 of arXiv 2405.16388, is π̃ e^(r/β) up to
    a constant: Σ_k α_k KL(π ‖ π_k) = E_π[log π − Σ_k α_k log π_k], which is KL(π ‖ π̃).

    Args:
        references: L_k(y), [K, ...].
        weights: α_k ≥ 0 that add up to 1, broadcastable to [K, ...].

    Returns:
        log π̃(y), [...], not normalised.
    """
    first = references[0]  # relative to it, equal log-probs give that log-prob to the last digit
    return first + (weights * (references - first)).sum(dim=0)


def multi_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    weights: Tensor,
    *,
    beta: float,
) -> PairwiseLoss:
    """Average DPO over references: −Σ_k α_k log σ(β h_k), with h_k the margin over reference k.

    The baseline of arXiv 2405.16388. Never below DPO against the geometric mean with the same weights
    (Jensen's inequality for −log σ).

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: L_k(y_w), [K, ...].
        reference_rejected: L_k(y_l), [K, ...].
        weights: α_k, broadcastable to [K, ...].
        beta: β, the reward's scale.

    Returns:
        Losses, and rewards β(log π_θ − L_1).
    """
    margins = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    loss = -(weights * logsigmoid(beta * margins)).sum(dim=0)
    chosen = policy_chosen.detach() - reference_chosen[0]
    rejected = policy_rejected.detach() - reference_rejected[0]
    return PairwiseLoss(loss, beta * chosen, beta * rejected)

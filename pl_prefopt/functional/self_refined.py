"""Losses with a self-computed offset: Sr-DPO and Sr-IPO.

Yu et al., "Direct Alignment of Language Models via Quality-Aware Self-Refinement", arXiv 2405.21040. The same
pair is scored twice: under its prompt x, which gives the margin h of
``pl_prefopt.functional.pairwise``, and under p ⊕ x, where p asks for the best response, which gives Δ. Inputs
broadcast as there, and the reference may be an ensemble's virtual one.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.functional.pairwise import PairwiseLoss


def refinement(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Return Δ = β[a(y_w|p ⊕ x) − a(y_l|p ⊕ x)], with a the log-ratio of policy and reference.

    Eq. 12 of arXiv 2405.21040: how far apart the policy itself holds the two when asked for quality.

    Args:
        policy_chosen: log π_θ(y_w|p ⊕ x).
        policy_rejected: log π_θ(y_l|p ⊕ x).
        reference_chosen: log π_ref(y_w|p ⊕ x).
        reference_rejected: log π_ref(y_l|p ⊕ x).
        beta: β, that of the loss.

    Returns:
        Δ, detached.
    """
    return (beta * (policy_chosen - reference_chosen - policy_rejected + reference_rejected)).detach()


def sr_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    *,
    beta: float,
    strength: float,
) -> PairwiseLoss:
    """Self-refined DPO: −log σ(βh − λ sg(Δ)).

    Eq. 13 of arXiv 2405.21040. A pair that the policy holds apart already when asked for quality (Δ > 0) must
    reach a larger margin. Without the stop-gradient sg and with p empty the loss would be DPO with
    β(1 − λ); Δ is therefore detached here whatever came in.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        delta: Δ, from ``refinement``.
        beta: β, the reward's scale.
        strength: λ ≥ 0.

    Returns:
        Losses, and rewards βa(y) without the refinement.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    loss = -logsigmoid(beta * (chosen - rejected) - strength * delta.detach())
    return PairwiseLoss(loss, beta * chosen.detach(), beta * rejected.detach())


def sr_ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    *,
    beta: float,
    strength: float,
) -> PairwiseLoss:
    """Self-refined IPO: (h − λ sg(Δ) − 1/(2β))².

    Eq. 15 of arXiv 2405.21040. Δ carries β and h does not, as printed: the margin is drawn to 1/(2β) + λΔ.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        delta: Δ, from ``refinement``.
        beta: β, IPO's τ.
        strength: λ ≥ 0.

    Returns:
        Losses, and rewards βa(y) without the refinement.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    loss = (chosen - rejected - strength * delta.detach() - 1 / (2 * beta)) ** 2
    return PairwiseLoss(loss, beta * chosen.detach(), beta * rejected.detach())

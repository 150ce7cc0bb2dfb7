"""Losses of a pair of responses against a reference: DPO and its relatives.

Every function takes four tensors of sequence log-probs, log π(y|x) = Σ_t log π(y_t|x, y_<t): the policy's
and the reference's, of the chosen and of the rejected response. They broadcast: [B] against [B] for
pairs, or [B, R, 1] for the chosen against [B, 1, R] for the rejected for a whole grid of pairs. In the
equations a(y) = log π_θ(y|x) − log π_ref(y|x) is the log-ratio and h = a(y_w) − a(y_l) its margin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.functional import links


class PairwiseLoss(NamedTuple):
    """What a pairwise loss returns.

    Attributes:
        loss: one loss per pair, unreduced, in the shape to which the inputs broadcast.
        chosen_reward: the chosen response's implicit reward, detached, in the shape of the chosen inputs.
        rejected_reward: the rejected response's, detached, in the shape of the rejected inputs.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> PairwiseLoss:
    """Direct preference optimisation: −(1 − ε) log σ(βh) − ε log σ(−βh).

    With ε = 0 Rafailov et al., arXiv 2305.18290, eq. 7; with ε > 0 conservative DPO (Mitchell 2023,
    "A note on DPO with noisy preferences & relationship to IPO"), whose optimum is the finite
    βh = logit(1 − ε).

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        beta: β, the reward's scale.
        label_smoothing: ε, the share of labels believed to be flipped.

    Returns:
        Losses and rewards βa(y).
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    loss = links.logistic(beta * (chosen - rejected), label_smoothing=label_smoothing)
    return PairwiseLoss(loss, beta * chosen.detach(), beta * rejected.detach())


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
) -> PairwiseLoss:
    """Identity preference optimisation: (h − 1/(2β))².

    Azar et al., arXiv 2310.12036, eq. 17, with β for the paper's τ. The function takes whatever log-probs
    it is given: sums as printed in the paper, or means per token as in its authors' experiments.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        beta: β; the optimal margin is 1/(2β).

    Returns:
        Losses and rewards βa(y), of the log-probs given.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    loss = (chosen - rejected - 1 / (2 * beta)) ** 2
    return PairwiseLoss(loss, beta * chosen.detach(), beta * rejected.detach())


def hinge(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
) -> PairwiseLoss:
    """Hinge loss on DPO's margin: max(0, 1 − βh).

    SLiC's rank calibration (Zhao et al., arXiv 2305.10425) with DPO's reward for its log-prob, as in RSO
    (Liu et al., arXiv 2309.06657). At the kink h = 1/β the subgradient is 0.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        beta: β; the gradient ends at the margin h = 1/β.

    Returns:
        Losses and rewards βa(y).
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    loss = links.hinge(beta * (chosen - rejected))
    return PairwiseLoss(loss, beta * chosen.detach(), beta * rejected.detach())


def robust_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    flip_rate: float,
) -> PairwiseLoss:
    """Provably robust DPO: −[(1 − ε) log σ(βh) − ε log σ(−βh)] / (1 − 2ε).

    Chowdhury et al., arXiv 2403.00409. Its mean over labels flipped at the rate ε is the DPO loss
    of the true label. It may be negative.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        beta: β, the reward's scale.
        flip_rate: ε < 1/2, the share of labels known to be flipped.

    Returns:
        Losses and rewards βa(y).
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    loss = links.robust(beta * (chosen - rejected), flip_rate=flip_rate)
    return PairwiseLoss(loss, beta * chosen.detach(), beta * rejected.detach())


def dpop(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    penalty: float,
) -> PairwiseLoss:
    """DPO-Positive: −log σ(β(h − λ max(0, −a(y_w)))).

    Pal et al. ("Smaug"), arXiv 2402.13228. The penalty λ, inside β, holds the chosen response's
    probability up to the reference's, which DPO's margin alone does not.

    The penalty has a kink at a(y_w) = 0, where an untrained policy is: the subgradient there is 0, so that
    the gradient is DPO's. As soon as a(y_w) is below 0, that of the chosen response is 1 + λ times larger.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        beta: β, the reward's scale.
        penalty: λ ≥ 0.

    Returns:
        Losses and rewards βa(y), without the penalty.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    logits = beta * (chosen - rejected - penalty * (-chosen).relu())
    return PairwiseLoss(-logsigmoid(logits), beta * chosen.detach(), beta * rejected.detach())


def f_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    derivative: Callable[[Tensor], Tensor],
) -> PairwiseLoss:
    """DPO under another divergence: −log σ(βf′(u_w) − βf′(u_l)) with u = π_θ(y|x) / π_ref(y|x).

    Wang et al., "Beyond Reverse KL", arXiv 2309.16240. TRL computes the same loss but logs the
    rewards βa(y) whatever the divergence; here they are those of the divergence.

    Args:
        policy_chosen: log π_θ(y_w|x).
        policy_rejected: log π_θ(y_l|x).
        reference_chosen: log π_ref(y_w|x).
        reference_rejected: log π_ref(y_l|x).
        beta: β, the reward's scale.
        derivative: f′ as a function of log u, such as those of ``pl_prefopt.functional.divergences``.

    Returns:
        Losses and rewards βf′(u).
    """
    chosen = beta * derivative(policy_chosen - reference_chosen)
    rejected = beta * derivative(policy_rejected - reference_rejected)
    return PairwiseLoss(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())

"""Losses of a pair of responses without a reference.

Both functions take ℓ̄ = log π_θ(y|x) / |y|, the policy's average log-prob per token, of the chosen and of the
rejected response. The two broadcast, as in ``pl_prefopt.functional.pairwise``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.functional.numerics import log1mexp
from pl_prefopt.functional.pairwise import PairwiseLoss


def simpo(policy_chosen: Tensor, policy_rejected: Tensor, *, beta: float, gamma: float) -> PairwiseLoss:
    """Simple preference optimisation: −log σ(βℓ̄_w − βℓ̄_l − γ).

    Meng et al., arXiv 2405.14734, eq. 6.

    Args:
        policy_chosen: ℓ̄_w, the mean log-prob per token of the chosen response.
        policy_rejected: ℓ̄_l.
        beta: β, the reward's scale.
        gamma: γ ≥ 0, the margin of the rewards to reach; not divided by β.

    Returns:
        Losses and rewards βℓ̄.
    """
    loss = -logsigmoid(beta * (policy_chosen - policy_rejected) - gamma)
    return PairwiseLoss(loss, beta * policy_chosen.detach(), beta * policy_rejected.detach())


def orpo(policy_chosen: Tensor, policy_rejected: Tensor, *, weight: float) -> PairwiseLoss:
    """Odds-ratio preference optimisation: −ℓ̄_w − λ log σ(log[odds(y_w) / odds(y_l)]).

    Hong et al., arXiv 2403.07691, eqs 6 and 7, with p = exp ℓ̄ and odds = p/(1 − p), hence
    log odds = ℓ̄ − log(1 − exp ℓ̄). The first term is the chosen response's negative log-likelihood per token:
    fine-tuning and preference in one stage. Rewards are λℓ̄, as TRL logs them.

    Args:
        policy_chosen: ℓ̄_w, the mean log-prob per token of the chosen response.
        policy_rejected: ℓ̄_l.
        weight: λ ≥ 0, of the odds-ratio term.

    Returns:
        Losses and rewards λℓ̄.
    """
    log_odds_ratio = _log_odds(policy_chosen) - _log_odds(policy_rejected)
    loss = -policy_chosen - weight * logsigmoid(log_odds_ratio)
    return PairwiseLoss(loss, weight * policy_chosen.detach(), weight * policy_rejected.detach())


def _log_odds(log_prob: Tensor) -> Tensor:
    return log_prob - log1mexp(log_prob)

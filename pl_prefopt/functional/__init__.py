"""Pure functions: the losses as their papers print them, unreduced, on tensors of log-probs."""

from pl_prefopt.functional.divergences import alpha_divergence, forward_kl, jensen_shannon, reverse_kl
from pl_prefopt.functional.embeddings import gpm_logistic, gpm_regression, skew_score, skew_scores
from pl_prefopt.functional.extrapolation import extrapolate
from pl_prefopt.functional.ideal_points import direction_reward, distance_reward
from pl_prefopt.functional.lists import pro, softmax_cross_entropy, softmax_over, swap_gain, win_rates
from pl_prefopt.functional.meta_rewards import meta_gradient, reward_spread
from pl_prefopt.functional.mixture import (
    adaptive_epsilon,
    adaptive_weights,
    clip_to_first,
    log_geometric_mean,
    log_harmonic_mean,
    multi_dpo,
)
from pl_prefopt.functional.multi_pair import (
    ListLoss,
    list_mle,
    pair_mcm,
    pair_mcs,
    pair_mnm,
    pair_mns,
    pair_single,
)
from pl_prefopt.functional.numerics import log1mexp
from pl_prefopt.functional.pairwise import PairwiseLoss, dpo, dpop, f_dpo, hinge, ipo, robust_dpo
from pl_prefopt.functional.peer_review import easy_to_hard, keep_largest, review
from pl_prefopt.functional.pointwise import point_ce, point_mse
from pl_prefopt.functional.reference_free import orpo, simpo
from pl_prefopt.functional.reward_losses import (
    attribute_regression,
    conditional_bradley_terry,
    contrastive,
    language_and_reward,
)
from pl_prefopt.functional.router_mixtures import (
    context_weights,
    hedge,
    mixture_nll,
    mixture_probability,
    responsibilities,
)
from pl_prefopt.functional.self_refined import refinement, sr_dpo, sr_ipo
from pl_prefopt.functional.strengths import adaptive_margin, preference_strength, smoothed_where_doubtful
from pl_prefopt.functional.unpaired import UnpairedLoss, kto
from pl_prefopt.functional.user_groups import best_groups, log_likelihoods, reseed_empty

__all__ = [
    "ListLoss",
    "PairwiseLoss",
    "UnpairedLoss",
    "adaptive_epsilon",
    "adaptive_margin",
    "adaptive_weights",
    "alpha_divergence",
    "attribute_regression",
    "best_groups",
    "clip_to_first",
    "conditional_bradley_terry",
    "context_weights",
    "contrastive",
    "direction_reward",
    "distance_reward",
    "dpo",
    "dpop",
    "easy_to_hard",
    "extrapolate",
    "f_dpo",
    "forward_kl",
    "gpm_logistic",
    "gpm_regression",
    "hedge",
    "hinge",
    "ipo",
    "jensen_shannon",
    "keep_largest",
    "kto",
    "language_and_reward",
    "list_mle",
    "log1mexp",
    "log_geometric_mean",
    "log_harmonic_mean",
    "log_likelihoods",
    "meta_gradient",
    "mixture_nll",
    "mixture_probability",
    "multi_dpo",
    "orpo",
    "pair_mcm",
    "pair_mcs",
    "pair_mnm",
    "pair_mns",
    "pair_single",
    "point_ce",
    "point_mse",
    "preference_strength",
    "pro",
    "refinement",
    "reseed_empty",
    "responsibilities",
    "reverse_kl",
    "review",
    "reward_spread",
    "robust_dpo",
    "simpo",
    "skew_score",
    "skew_scores",
    "smoothed_where_doubtful",
    "softmax_cross_entropy",
    "softmax_over",
    "sr_dpo",
    "sr_ipo",
    "swap_gain",
    "win_rates",
]

"""Pure functions: the losses as their papers print them, unreduced, on tensors of log-probs."""

from pl_prefopt.functional.divergences import alpha_divergence, forward_kl, jensen_shannon, reverse_kl
from pl_prefopt.functional.lists import pro, softmax_cross_entropy, softmax_over, swap_gain, win_rates
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
from pl_prefopt.functional.pointwise import point_ce, point_mse
from pl_prefopt.functional.reference_free import orpo, simpo
from pl_prefopt.functional.self_refined import refinement, sr_dpo, sr_ipo
from pl_prefopt.functional.unpaired import UnpairedLoss, kto

__all__ = [
    "ListLoss",
    "PairwiseLoss",
    "UnpairedLoss",
    "adaptive_epsilon",
    "adaptive_weights",
    "alpha_divergence",
    "clip_to_first",
    "dpo",
    "dpop",
    "f_dpo",
    "forward_kl",
    "hinge",
    "ipo",
    "jensen_shannon",
    "kto",
    "list_mle",
    "log1mexp",
    "log_geometric_mean",
    "log_harmonic_mean",
    "multi_dpo",
    "orpo",
    "pair_mcm",
    "pair_mcs",
    "pair_mnm",
    "pair_mns",
    "pair_single",
    "point_ce",
    "point_mse",
    "pro",
    "refinement",
    "reverse_kl",
    "robust_dpo",
    "simpo",
    "softmax_cross_entropy",
    "softmax_over",
    "sr_dpo",
    "sr_ipo",
    "swap_gain",
    "win_rates",
]

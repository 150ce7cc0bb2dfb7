"""Pure functions: the losses as their papers print them, unreduced, on tensors of log-probs."""

from pl_prefopt.functional.divergences import alpha_divergence, forward_kl, jensen_shannon, reverse_kl
from pl_prefopt.functional.numerics import log1mexp
from pl_prefopt.functional.pairwise import PairwiseLoss, dpo, dpop, f_dpo, hinge, ipo, robust_dpo
from pl_prefopt.functional.reference_free import orpo, simpo
from pl_prefopt.functional.unpaired import UnpairedLoss, kto

__all__ = [
    "PairwiseLoss",
    "UnpairedLoss",
    "alpha_divergence",
    "dpo",
    "dpop",
    "f_dpo",
    "forward_kl",
    "hinge",
    "ipo",
    "jensen_shannon",
    "kto",
    "log1mexp",
    "orpo",
    "reverse_kl",
    "robust_dpo",
    "simpo",
]

"""Objectives on pairs without a reference: SimPO and ORPO."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt import functional
from pl_prefopt.functional import PairwiseLoss
from pl_prefopt.objectives.checks import non_negative, positive
from pl_prefopt.objectives.pairs import PairwiseReferenceFreeObjective
from pl_prefopt.pairing import ALL_PAIRS, Pairing


class SimPO(PairwiseReferenceFreeObjective):
    """Simple preference optimisation (Meng et al., arXiv 2405.14734).

    Args:
        beta: β > 0, the scale of the average log-prob a token.
        gamma: γ ≥ 0, the margin of rewards to reach; TRL's ``simpo_gamma``, not divided by β.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, beta: float = 2.0, gamma: float = 1.0, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(pairing=pairing)
        self.beta = positive("beta", beta)
        self.gamma = non_negative("gamma", gamma)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.simpo``."""
        return functional.simpo(*winner_and_loser, beta=self.beta, gamma=self.gamma)


class ORPO(PairwiseReferenceFreeObjective):
    """Odds-ratio preference optimisation, fine-tuning included (Hong et al., arXiv 2403.07691).

    Args:
        weight: λ ≥ 0, of the odds-ratio term beside the chosen response's likelihood; TRL's ``beta``.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(self, *, weight: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(pairing=pairing)
        self.weight = non_negative("weight", weight)

    def pair_loss(self, *winner_and_loser: Tensor) -> PairwiseLoss:
        """Return ``functional.orpo``."""
        return functional.orpo(*winner_and_loser, weight=self.weight)

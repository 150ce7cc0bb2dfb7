"""SimPO and ORPO: pairs of log-probs per token, without a reference."""

from __future__ import annotations

import dataclasses

from pl_prefopt.objectives.base import ReferenceFreeObjective
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.offsets import Margin
from pl_prefopt.objectives.pair_weights import ConstantWeight
from pl_prefopt.objectives.scores import LogOdds, MeanLogProb
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.terms import NegativeLogLikelihood
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/simpo_orpo.md"


class SimPO(Compose, ReferenceFreeObjective):
    """Simple preference optimisation: −log σ(βℓ̄_w − βℓ̄_l − γ), ℓ̄ the log-prob per token.

    Meng et al., arXiv 2405.14734, eq. 6.

    Args:
        beta: β > 0, the scale of the log-prob per token.
        gamma: γ ≥ 0, the margin of rewards to reach; TRL's ``simpo_gamma``, not divided by β.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Responses of four tokens, at −1 and −2 per token:

        >>> from pl_prefopt.objectives.examples import example
        >>> SimPO(beta=2.0, gamma=1.0)(example([-4.0, -8.0])).loss  # −log σ(2 · 1 − 1)
        tensor([0.3133])
    """

    use_when = "Pairs, and no memory for a reference."

    def __init__(self, *, beta: float = 2.0, gamma: float = 1.0, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=MeanLogProb(beta), structure=MeanOfPairs(pairing), offsets=[Margin(gamma)])

    beta = property(lambda self: self.score.beta)
    gamma = property(lambda self: self.offsets[0].gamma)


class ORPO(Compose, ReferenceFreeObjective):
    """Odds-ratio preference optimisation, fine-tuning included: −ℓ̄_w − λ log σ(log[odds(y_w) / odds(y_l)]).

    Hong et al., arXiv 2403.07691, eqs 6 and 7. Rewards are λℓ̄, as TRL logs them.

    Args:
        weight: λ ≥ 0, of the odds-ratio term alongside the chosen response's likelihood; TRL's ``beta``.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Two equally likely responses, at −1 per token:

        >>> from pl_prefopt.objectives.examples import example
        >>> ORPO(weight=0.1)(example([-4.0, -4.0])).loss  # 1 + 0.1 log 2
        tensor([1.0693])
    """

    use_when = (
        "Pairs, and a base model that was never fine-tuned: supervised fine-tuning is part of the loss."
    )

    def __init__(self, *, weight: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(
            score=LogOdds(),
            structure=MeanOfPairs(pairing),
            weights=[ConstantWeight(non_negative("weight", weight))],
            terms=[NegativeLogLikelihood()],
        )

    weight = property(lambda self: self.weights[0].value)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and the rewards λℓ̄."""
        mean = batch.policy.mean.detach().where(batch.present, 0.0)
        return dataclasses.replace(super().forward(batch), reward=self.weight * mean)

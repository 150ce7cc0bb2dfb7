"""DPO with a margin that depends on the pair: on its scores, its lengths, or a column of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.objectives.base import Needs, ReferenceObjective
from pl_prefopt.objectives.checks import non_negative, positive, score_interval
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.offsets import ColumnMargin, LengthGap, LogScoreGap, ScoreGap, gap
from pl_prefopt.objectives.scores import LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.pairing import ALL_PAIRS, Pairing

PAGE = "methods/pairs.md"


class ODPO(Compose, ReferenceObjective):
    """DPO with an offset: −log σ(βh − α f(s_w − s_l)), f the identity or the logarithm.

    Amini et al., arXiv 2402.10571. Reconstructed: α was not found, so the offset has no default.

    Args:
        offset: α f(s_w − s_l), ``ScoreGap`` for the identity or ``LogScoreGap`` for the logarithm.
        beta: β > 0, the strength of the KL penalty.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> batch = example([-8.0, -10.0], [-10.0, -10.0], scores=[5.0, 1.0])
        >>> ODPO(offset=ScoreGap(alpha=0.5), beta=1.0)(batch).loss
        tensor([0.6931])
    """

    data = ("scores", "lists")
    use_when = "Scores tell by how much a response is better, and better ones should win by more."

    def __init__(
        self, *, offset: ScoreGap | LogScoreGap, beta: float = 0.1, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), offsets=[offset])

    beta = property(lambda self: self.score.beta)
    offset = property(lambda self: self.offsets[0])


class LengthDPO(Compose, ReferenceObjective):
    """Length-regularised DPO (R-DPO): −log σ(βh + α(|y_w| − |y_l|)), lengths in tokens.

    Park et al., arXiv 2403.19159. The reward is penalised by α|y|: the optimum of E[r − α|y|] − βKL has βh =
    Δr − α(|y_w| − |y_l|), which is solved for Δr. A longer winner thus wins partly by its length and is
    learned less from. Some surveys print the opposite sign, with which longer winners are learned more from.
    A value of α was not found, so it has no default. (``RobustDPO`` is another method with the initials
    rDPO.)

    Args:
        alpha: α ≥ 0, the penalty per token, in units of the reward.
        beta: β > 0, the strength of the KL penalty.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> batch = example([-8.0, -10.0], [-10.0, -10.0], lengths=[4, 8])
        >>> LengthDPO(alpha=0.5, beta=1.0)(batch).loss
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "Chosen responses are longer than rejected ones, and the policy should not learn length."

    def __init__(self, *, alpha: float, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        offset = LengthGap(-non_negative("alpha", alpha))
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), offsets=[offset])

    beta = property(lambda self: self.score.beta)
    alpha = property(lambda self: -self.offsets[0].alpha)


class AdaptiveMarginDPO(Compose, ReferenceObjective):
    """DPO with the strength of each pair as its margin: −log σ(βh − αû), û from a column of the data.

    Wang et al., "Secrets of RLHF in Large Language Models Part II", arXiv 2401.06080, train a reward model by
    −log σ(d − û), û the mean of ten reward models' margins. On DPO's implicit reward it is this project's
    reading. Where û < 0 the loser may be ahead.

    Args:
        beta: β > 0, the strength of the KL penalty.
        alpha: α ≥ 0, in units of the reward per unit of the column.
        column: a column with û per row, or with a reward per response, whose difference is û. 0 in rows
            without a number.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> import torch
        >>> from pl_prefopt.objectives.examples import example
        >>> batch = example([-8.0, -10.0], [-10.0, -10.0], columns={"strength": torch.tensor([2.0])})
        >>> AdaptiveMarginDPO(beta=1.0)(batch).loss
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "Reward models have measured how strong each preference is."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        alpha: float = 1.0,
        column: str = "strength",
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        offset = ColumnMargin(column, non_negative("alpha", alpha))
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), offsets=[offset])

    beta = property(lambda self: self.score.beta)
    alpha = property(lambda self: self.offsets[0].alpha)
    column = property(lambda self: self.offsets[0].column)


class SmPO(Compose, ReferenceObjective):
    """Smoothed preference optimisation: −log σ(γ(2p − 1)βh), p the softmax of the pair's normalised scores.

    SmPO-Diffusion, arXiv 2506.02698, in its code's form, for text. Scores are normalised to [0, 1] over the
    data, so that 2p − 1 = tanh((ŝ_w − ŝ_l)/2) and the factor of βh lies between 0 and γ · 0.46212. The
    paper's β belongs to diffusion models, so β has no default.

    Args:
        beta: β > 0, the strength of the KL penalty.
        score_range: the lowest and the highest score of the data.
        gamma: γ > 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> batch = example([-8.0, -10.0], [-10.0, -10.0], scores=[10.0, 1.0])
        >>> SmPO(beta=0.1, score_range=(1.0, 10.0))(batch).loss  # log(1 + exp(−0.2 · 4.6212))
        tensor([0.3342])
    """

    data = ("scores", "lists")
    use_when = "Scores tell which pairs are close, and close pairs should change the policy little."

    def __init__(
        self,
        *,
        beta: float,
        score_range: tuple[float, float],
        gamma: float = 10.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing))
        self.score_range, self.gamma = score_interval(score_range), positive("gamma", gamma)

    beta = property(lambda self: self.score.beta)

    @property
    def needs(self) -> Needs:
        """One reference, and scores in the range whose differences mean something."""
        return Needs.of_all(super().needs, Needs(score_range=self.score_range, graded=True))

    def margins(self, compared: Comparisons) -> Tensor:
        """Return γ(2p − 1)βh."""
        low, high = self.score_range
        scores = compared.batch.scores.to(compared.rewards.response)
        distance = torch.where(compared.pairs, gap(scores), 0.0) / (high - low)
        return self.gamma * (distance / 2).tanh() * super().margins(compared)

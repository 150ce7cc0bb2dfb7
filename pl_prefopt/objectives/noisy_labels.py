"""Pairs whose labels may be wrong or are probabilities, and pairs chosen by their scores."""

from __future__ import annotations

from collections.abc import Sequence

from pl_prefopt.errors import ContractError
from pl_prefopt.objectives.base import ReferenceObjective
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.labels import ColumnLabel, ScoreLabel
from pl_prefopt.objectives.links import ExactOptimization, Logistic
from pl_prefopt.objectives.scores import LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.pairing import ALL_PAIRS, LargeMargin, Pairing
from pl_prefopt.rows import PreferenceRow

PAGE = "methods/pairs.md"


class CDPO(Compose, ReferenceObjective):
    """Conservative DPO: −(1 − ε) log σ(βh) − ε log σ(−βh), h the margin of log-ratios.

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO"; DPO is arXiv 2305.18290. The
    minimum is at βh = logit(1 − ε). The same as ``DPO`` with ``label_smoothing``, under a name of its own.

    TRL 1.16 ignores ``label_smoothing`` with its ``sigmoid`` loss and trains plain DPO.

    Args:
        beta: β > 0, the strength of the KL penalty.
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped. 0.1 is this project's.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> CDPO(beta=1.0, label_smoothing=0.1)(example([-8.0, -10.0], [-10.0, -10.0])).loss
        tensor([0.3269])
    """

    data = ("pairs", "lists")
    use_when = "An unknown share of the labels is wrong."

    def __init__(
        self, *, beta: float = 0.1, label_smoothing: float = 0.1, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), link=Logistic(label_smoothing))

    beta = property(lambda self: self.score.beta)
    label_smoothing = property(lambda self: self.link.label_smoothing)


class EXO(Compose, ReferenceObjective):
    """Exact optimisation of a pair: KL(q ‖ (1 − ε, ε)) with q = σ(βh), the reverse of cDPO's KL divergence.

    Ji et al., arXiv 2402.00856, eq. 16 for K = 2. The minimum of 0 is at βh = logit(1 − ε). Published
    settings as TRL's paper index lists them: β 0.1, ε 0.001, learning rate 1e-6, batches of 64.

    Args:
        beta: β > 0, the strength of the KL penalty.
        epsilon: ε in (0, 0.5); TRL's ``label_smoothing``.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> EXO()(example([-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([2.7612])
    """

    data = ("pairs", "lists")
    use_when = "The policy should seek the modes of the optimal policy rather than cover it."

    def __init__(self, *, beta: float = 0.1, epsilon: float = 1e-3, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(
            score=LogRatio(beta), structure=MeanOfPairs(pairing), link=ExactOptimization(epsilon)
        )

    beta = property(lambda self: self.score.beta)
    epsilon = property(lambda self: self.link.epsilon)


class OSP(Compose, ReferenceObjective):
    """Soft-preference cross-entropy: −q log σ(βh) − (1 − q) log σ(−βh), q from a column of the data.

    OSP, arXiv 2405.14103, where the model itself judges q. Reconstructed: β was not found and has no default.
    The gradient in βh is σ(βh) − q, so the minimum is at βh = logit q.

    Args:
        beta: β > 0, the strength of the KL penalty.
        column: a column with one number in [0, 1] per row, the probability that the better scored response is
            preferred, or with one number of votes per response, see ``ColumnLabel``. 1, that is DPO, in rows
            without a number.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> import torch
        >>> from pl_prefopt.objectives.examples import example
        >>> batch = example([-8.0, -10.0], [-10.0, -10.0], columns={"preference": torch.tensor([0.9])})
        >>> OSP(beta=1.0)(batch).loss
        tensor([0.3269])
    """

    data = ("pairs",)
    use_when = "Each pair comes with a probability that its label is right."

    def __init__(self, *, beta: float, column: str = "preference", pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), label=ColumnLabel(column))

    beta = property(lambda self: self.score.beta)
    column = property(lambda self: self.label.column)


class DNO(Compose, ReferenceObjective):
    """Direct Nash optimisation: −q log σ(ηh) − (1 − q) log σ(−ηh) with q = σ(s_w − s_l) of the scores.

    Rosset et al., arXiv 2404.03715, algorithm 1. The reference is the policy of the previous round, and the
    score of a response its mean win rate against that policy's samples. The minimum is at ηh = s_w − s_l.

    Args:
        eta: η > 0, the scale of log-ratios. The paper gives no value for this form, so it has no default.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        At its minimum the loss is the entropy of q.

        >>> from pl_prefopt.objectives.examples import example
        >>> DNO(eta=1.0)(example([-8.0, -10.0], [-10.0, -10.0], scores=[3.0, 1.0])).loss
        tensor([0.3653])
    """

    data = ("scores", "lists")
    use_when = "Scores are rewards or win rates whose differences should be matched, not exceeded."

    def __init__(self, *, eta: float, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatio(eta), structure=MeanOfPairs(pairing), label=ScoreLabel())

    eta = property(lambda self: self.score.beta)


class DNOPrct(Compose, ReferenceObjective):
    """DNO in practice: DPO's −log σ(βh) on the pairs whose winner is good and far better than the loser.

    Rosset et al., arXiv 2404.03715, algorithm 2, against the policy of the previous round. On a scale of 6
    points a winner has at least 5, and a loser 2 less. The paper's smaller gap of 1 for winners that the
    policy itself wrote, and its replay of earlier rounds, belong to the data.

    Args:
        beta: β > 0, the strength of the KL penalty; the paper has 0.1 and 0.05.
        min_score: the lowest score of a winner.
        min_gap: the smallest difference of the scores, above 0.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Of three pairs, 6 against 3 alone is far enough apart:

        >>> from pl_prefopt.objectives.examples import example
        >>> batch = example([-8.0, -9.0, -10.0], [-10.0, -10.0, -10.0], scores=[6.0, 4.5, 3.0])
        >>> DNOPrct(beta=1.0)(batch).loss
        tensor([0.1269])
    """

    data = ("scores", "lists")
    use_when = "Samples of the policy were scored by a judge, and only clear differences can be trusted."

    def __init__(self, *, beta: float = 0.1, min_score: float = 5.0, min_gap: float = 2.0) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(LargeMargin(min_score, min_gap)))

    beta = property(lambda self: self.score.beta)
    min_score = property(lambda self: self.structure.pairing.min_score)
    min_gap = property(lambda self: self.structure.pairing.min_gap)

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows of which none has a pair that is far enough apart."""
        super().check_training_rows(rows)
        for row in rows:
            best, worst = max(row.scores or (0.0,)), min(row.scores or (0.0,))
            if best >= self.min_score and best - worst >= self.min_gap:
                return
        raise ContractError(
            f"{type(self).__name__} learns from pairs whose winner scores at least {self.min_score:g} and "
            f"{self.min_gap:g} more than the loser, but none of the {len(rows)} train rows has one: set "
            "objective.init_args.min_score and min_gap to fit the scale of the scores."
        )

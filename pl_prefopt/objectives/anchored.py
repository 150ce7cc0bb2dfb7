"""Pairs whose responses are compared with the reference one by one: NCA, BCO, SPPO and APO on pairs."""

from __future__ import annotations

from pl_prefopt.objectives.base import ReferenceObjective
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.scores import LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.two_sided import (
    AnchoredDown,
    AnchoredZero,
    BinaryClassification,
    HardWinRates,
    NoiseContrast,
    TwoSidedLink,
)
from pl_prefopt.pairing import ALL_PAIRS, Pairing

PAGE = "methods/pairs.md"


class AnchoredObjective(Compose, ReferenceObjective):
    """An objective on both rewards r = βa(y) of a pair, a the log-ratio.

    Args:
        beta: β > 0, the scale of the reward.
        link: the loss of r_w and r_l.
        pairing: which responses to compare.
    """

    def __init__(self, *, beta: float, link: TwoSidedLink, pairing: Pairing) -> None:
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), link=link)

    beta = property(lambda self: self.score.beta)


class NCA(AnchoredObjective):
    """Noise contrastive alignment: −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r = βa(y).

    Chen et al., arXiv 2402.05369. The chosen response has a finite optimum, r_w = log 2: unlike DPO's, its
    likelihood is pulled up to there and never pushed beyond. Published settings as TRL's paper index lists
    them: β 0.01, learning rate 5e-6, batches of 32.

    Args:
        beta: β > 0, the scale of the reward.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> NCA()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # 2 log 2
        tensor([1.3863])
    """

    data = ("pairs", "lists")
    use_when = "DPO lowers the likelihood of chosen responses, which should be kept."

    def __init__(self, *, beta: float = 0.01, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(beta=beta, link=NoiseContrast(), pairing=pairing)


class BCOPair(AnchoredObjective):
    """Binary classifier optimisation on pairs: −log σ(r_w) − log σ(−r_l), r = βa(y).

    Jung et al., arXiv 2404.04656, without the shift δ, as TRL's ``bco_pair`` has it; ``BCO`` has the shift.
    It equals DPO's loss plus log[1 + (e^−r_w + e^r_l)/(1 + e^(r_l − r_w))]. Published settings as TRL's paper
    index lists them: β 0.01, learning rate 5e-7, batches of 128.

    Args:
        beta: β > 0, the scale of the reward.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> BCOPair()(example([-10.0, -10.0], [-10.0, -10.0])).loss  # 2 log 2
        tensor([1.3863])
    """

    data = ("pairs", "lists")
    use_when = "As the part of a mixture that keeps the absolute level of rewards."

    def __init__(self, *, beta: float = 0.01, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(beta=beta, link=BinaryClassification(), pairing=pairing)


class SPPOHard(AnchoredObjective):
    """SPPO with win rates of 1 and 0: (a_w − 1/(2β))² + (a_l + 1/(2β))², a the log-ratio.

    Wu et al., arXiv 2405.00675, eq. 4.7, as TRL's ``sppo_hard`` has it: the paper has soft win rates and a
    factor ½. It equals ½(h − 1/β)² + ½(a_w + a_l)², so that it aims at twice IPO's margin. Published settings
    as TRL's paper index lists them: β 0.001, learning rate 5e-7, batches of 64.

    Args:
        beta: β > 0, the paper's 1/η; the minimum is at a_w = 1/(2β) and a_l = −1/(2β).
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> SPPOHard(beta=0.1)(example([-10.0, -10.0], [-10.0, -10.0])).loss  # 1/(2β²)
        tensor([50.])
    """

    data = ("pairs", "lists")
    use_when = "Rounds of self-play, where the best and the worst sample of the policy make a pair."

    def __init__(self, *, beta: float = 0.001, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(beta=beta, link=HardWinRates(beta), pairing=pairing)


class APOZero(AnchoredObjective):
    """Anchored preference optimisation, zero: 1 − σ(r_w) + σ(r_l), r = βa(y).

    D'Oosterlinck et al., arXiv 2408.06266, eq. 7. Chosen responses become more likely and rejected ones less.
    The loss lies in (0, 2), and its gradient in either log-ratio is at most β/4. Published settings as TRL's
    paper index lists them: β 0.1, learning rate 2e-7, batches of 64.

    Args:
        beta: β > 0, the scale of the reward.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> APOZero()(example([-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([1.])
    """

    data = ("pairs", "lists")
    use_when = "Chosen responses are better than what the policy writes by itself."

    def __init__(self, *, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(beta=beta, link=AnchoredZero(), pairing=pairing)


class APODown(AnchoredObjective):
    """Anchored preference optimisation, down: σ(r_w) + 1 − σ(r_w − r_l), r = βa(y).

    D'Oosterlinck et al., arXiv 2408.06266, eq. 8. Both responses become less likely, the rejected one more
    so. Where policy and reference agree, the chosen response has no gradient. Published settings as TRL's
    paper index lists them: β 0.1, learning rate 2e-7, batches of 64.

    Args:
        beta: β > 0, the scale of the reward.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> APODown()(example([-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([1.])
    """

    data = ("pairs", "lists")
    use_when = "Chosen responses are worse than what the policy writes by itself."

    def __init__(self, *, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(beta=beta, link=AnchoredDown(), pairing=pairing)

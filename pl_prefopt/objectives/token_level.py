"""Token-level methods: TDPO, TGDPO and LD-DPO, pairs of responses whose rewards are sums over tokens."""

from __future__ import annotations

from pl_prefopt.objectives.base import Objective
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.scores import LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.token_scores import (
    GuidedLogRatio,
    LengthDesensitized,
    LogRatioKL,
    LogRatioStoppedKL,
)
from pl_prefopt.pairing import ALL_PAIRS, Pairing

PAGE = "methods/token_level.md"


class TokenLevelObjective(Objective):
    """The family whose rewards are computed from numbers per token: TDPO, TGDPO, LD-DPO.

    References must be models that read the policy's tokens.
    """

    references = (1, 1)


class TDPO1(Compose, TokenLevelObjective):
    """TDPO1: −log σ(β(h − (K_l − K_w))), h the margin of log-ratios, K = Σ_t KL(π_ref ‖ π_θ).

    Zeng et al., "Token-level Direct Preference Optimization", arXiv 2404.11999. K is a sum over the tokens of
    the response, of KL divergences over the whole vocabulary. Its gradient rewards a larger K_w, which takes
    the policy away from the reference on winners: prefer TDPO2.

    Args:
        beta: β > 0, the strength of the KL penalty; 0.1 in the authors' code.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        One pair with log-ratios 1 and 0, and K = 2 on the winner, 1 on the loser: −log σ(0.5 · (1 + 1)).

        >>> import torch
        >>> from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers
        >>> tokens = TokenNumbers(
        ...     counted=torch.tensor([[[True], [True]]]),
        ...     policy=torch.tensor([[[-1.0], [-2.0]]]),
        ...     references=torch.tensor([[[[-2.0], [-2.0]]]]),
        ...     kl={"forward": torch.tensor([[[[2.0], [1.0]]]])},
        ... )
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=tokens.policy.sum(-1), length=torch.tensor([[1, 1]])),
        ...     references=tokens.references.sum(-1),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ...     tokens=tokens,
        ... )
        >>> outcome = TDPO1(beta=0.5)(batch)
        >>> outcome.loss, outcome.reward
        (tensor([0.3133]), tensor([[1.5000, 0.5000]]))

        TDPO2 with α = 1 has the same value; with α = 0 it is DPO, −log σ(0.5).

        >>> TDPO2(beta=0.5, alpha=1.0)(batch).loss, TDPO2(beta=0.5, alpha=0.0)(batch).loss
        (tensor([0.3133]), tensor([0.4741]))
    """

    use_when = "To reproduce TDPO's first variant; TDPO2 is the one to use."

    def __init__(self, *, beta: float = 0.1, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatioKL(beta), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)


class TDPO2(Compose, TokenLevelObjective):
    """TDPO2: −log σ(β(h − α(K_l − sg(K_w)))), h the margin of log-ratios, K = Σ_t KL(π_ref ‖ π_θ).

    Zeng et al., "Token-level Direct Preference Optimization", arXiv 2404.11999. sg stops the gradient, so
    that the policy is held near the reference on losers and isn't pushed away from it on winners. α = 0 is
    DPO. Rewards are β(a + K), as in the authors' code. See ``TDPO1`` for an example.

    Args:
        beta: β > 0, the strength of the KL penalty; 0.1 in the authors' code.
        alpha: α ≥ 0, the weight of the difference of divergences; 0.5 in the authors' code.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.
    """

    use_when = "DPO drifts too far from the reference, and the reference reads the policy's tokens."

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.5, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LogRatioStoppedKL(beta, alpha), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)
    alpha = property(lambda self: self.score.alpha)


class TGDPO(Compose, TokenLevelObjective):
    """TGDPO: −log σ(Σ_t β(1 + α r̂_t) a_t(y_w) − Σ_t β(1 − α r̂_t) a_t(y_l)), r̂_t = β log(π_g / π_ref)(y_t).

    Zhu et al., "TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization",
    arXiv 2506.14574. a_t is the log-ratio of a token to the first reference. The second reference is the
    guide π_g, a model that has been preference-tuned already, with DPO say. Both must read the policy's
    tokens. α = 0, or a guide equal to the reference, is DPO. Rewards are βa.

    Args:
        beta: β > 0, the strength of the KL penalty; 0.1 in the authors' configuration.
        alpha: α ≥ 0, the influence of the guide; 0.5 in the authors' configuration.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        One token each. Log-ratios 1 and −1; the guide finds the winner's token 2 nats better than the
        reference, r̂ = 1: the winner's weight is 1.5, and z = 0.5 · 1.5 · 1 + 0.5 · 1.

        >>> import torch
        >>> from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers
        >>> tokens = TokenNumbers(
        ...     counted=torch.tensor([[[True], [True]]]),
        ...     policy=torch.tensor([[[-2.0], [-4.0]]]),
        ...     references=torch.tensor([[[[-3.0], [-3.0]]], [[[-1.0], [-3.0]]]]),
        ... )
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=tokens.policy.sum(-1), length=torch.tensor([[1, 1]])),
        ...     references=tokens.references.sum(-1),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ...     tokens=tokens,
        ... )
        >>> TGDPO(beta=0.5, alpha=0.5)(batch).loss, -torch.tensor(1.25).sigmoid().log()
        (tensor([0.2519]), tensor(0.2519))
    """

    references = (2, 2)
    use_when = "You have a preference-tuned model of the policy's family to guide a second round of training."

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.5, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=GuidedLogRatio(beta, alpha), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.beta)
    alpha = property(lambda self: self.score.alpha)


class LDDPO(Compose, TokenLevelObjective):
    """LD-DPO: −log σ(βh) with log p = Σ_{t ≤ m} log p_t + α Σ_{t > m} log p_t, m = min(|y_w|, |y_l|).

    Liu et al., "Length Desensitization in Direct Preference Optimization", arXiv 2409.06411; TRL's
    ``ld_alpha``. h is the margin of log-ratios, of which both log-probs are weighted so. α = 1 is DPO.
    ``LengthDesensitized`` modifies the scores of other objectives in the same way.

    Args:
        beta: β > 0, the strength of the KL penalty; 0.1 is DPO's usual value.
        alpha: α in [0, 1], the weight of what the longer response has beyond the shorter one's length; 0.5 is
            the value in TRL's index of papers.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        A winner of two tokens with log-ratios 1 and 4, a loser of one with 0: h = 1 + 0.5 · 4.

        >>> import torch
        >>> from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers
        >>> tokens = TokenNumbers(
        ...     counted=torch.tensor([[[True, True], [True, False]]]),
        ...     policy=torch.tensor([[[-2.0, -1.0], [-3.0, 0.0]]]),
        ...     references=torch.tensor([[[[-3.0, -5.0], [-3.0, 0.0]]]]),
        ... )
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=tokens.policy.sum(-1), length=torch.tensor([[2, 1]])),
        ...     references=tokens.references.sum(-1),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ...     tokens=tokens,
        ... )
        >>> LDDPO(beta=0.5, alpha=0.5)(batch).loss, -torch.tensor(0.5 * 3).sigmoid().log()
        (tensor([0.2014]), tensor(0.2014))
    """

    use_when = "Responses grow longer under DPO without getting better."

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.5, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=LengthDesensitized(LogRatio(beta), alpha), structure=MeanOfPairs(pairing))

    beta = property(lambda self: self.score.score.beta)
    alpha = property(lambda self: self.score.alpha)

"""Objectives that also learn why a response is better, from a rationale in the data."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.objectives.checks import non_negative
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.pair_weights import ConstantWeight
from pl_prefopt.objectives.scores import LogOdds, LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.terms import NegativeLogLikelihood, Term, mean_where
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch
from pl_prefopt.views import RationaleView

PAGE = "methods/more_inputs.md"
RATIONALE = RationaleView()
"""The default question and answer."""

Average: TypeAlias = Literal["sequence", "token"]
"""The log-prob of a rationale: summed over its tokens, or their mean."""


@dataclass(frozen=True)
class RationaleTerm(Term):
    """A loss on γ log π_θ(r), r the answer to the question which of the pair is better and why.

    Args:
        gamma: γ ≥ 0.
        average: the log-prob of the whole ``sequence``, or the mean per ``token``.
        view: the question and the answer.

    Raises:
        ConfigError: if a setting is out of range.
    """

    name: ClassVar[str] = "rationale"
    gamma: float
    average: Average = "sequence"
    view: RationaleView = field(default=RATIONALE)

    def __post_init__(self) -> None:
        non_negative("gamma", self.gamma)
        if self.average not in get_args(Average):
            raise ConfigError(f"average must be 'sequence' or 'token', but is {self.average!r}.")

    @property
    def info(self) -> MetricInfo:
        """Its mean over prompts."""
        return MetricInfo(name=self.name, help="Mean over prompts of the loss on rationales.", better="lower")

    @property
    def needs(self) -> Needs:
        """The rationale of each row, and its tokens, with gradient."""
        return Needs(
            columns=(self.view.column,),
            views={"rationale": self.view},
            trained_views=frozenset({"rationale"}),
        )

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse lists, of which no rationale says which two it is about.

        Raises:
            DataError: naming the row.
        """
        for row in rows:
            if len(row.responses) != 2:
                raise DataError(
                    f"a rationale says which of two responses is better, but "
                    f"{row.origin or 'a row'} ({split}) has {len(row.responses)}: use pairs."
                )

    def __call__(self, compared: Comparisons) -> Tensor:
        view = compared.batch.views["rationale"]
        log_probs = view.policy.sum if self.average == "sequence" else view.policy.mean
        there = view.present & compared.pairs.flatten(1).any(dim=-1, keepdim=True)
        return mean_where(there, self.loss(torch.where(there, log_probs, 0.0)))

    @abstractmethod
    def loss(self, log_probs: Tensor) -> Tensor:
        """Return the loss of each rationale, given its log-prob."""


@dataclass(frozen=True)
class LogisticRationale(RationaleTerm):
    """−log σ(γ log π_θ(r)): for small γ|log π_θ(r)| log 2 − (γ/2) log π_θ(r), half the weight of γ NLL.

    Its gradient in log π_θ(r) is −γ σ(−γ log π_θ(r)), from −γ to −γ/2, and its value at least log 2.

    Args:
        gamma: γ ≥ 0.
        average: the log-prob of the whole ``sequence``, or the mean per ``token``.
        view: the question and the answer.
    """

    def loss(self, log_probs: Tensor) -> Tensor:
        """See ``RationaleTerm``."""
        return -logsigmoid(self.gamma * log_probs)


@dataclass(frozen=True)
class RationaleNegativeLogLikelihood(RationaleTerm):
    """−γ log π_θ(r): supervised fine-tuning on rationales.

    Args:
        gamma: γ ≥ 0.
        average: the log-prob of the whole ``sequence``, or the mean per ``token``.
        view: the question and the answer.
    """

    def loss(self, log_probs: Tensor) -> Tensor:
        """See ``RationaleTerm``."""
        return -self.gamma * log_probs


class RationaleDPO(Compose, ReferenceObjective):
    """DPO with rationales (RDPO): −log σ(βh) − log σ(γ log π_θ(r)), r why y_w is better, given both.

    Just et al., arXiv 2407.14477, as in their code; β and γ are its configuration's. Its command line has γ
    0.001, and a learning rate of 5e-7. The log-prob of r is a sum over tokens and has no reference. The
    question and the order of the two responses are this project's, see ``RationaleView``. With γ = 0 it is
    DPO, up to the constant log 2.

    Args:
        beta: β > 0, the strength of the KL penalty.
        gamma: γ ≥ 0.
        view: the question and the answer.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = with_view(example([-8.0, -10.0], [-10.0, -10.0]), "rationale", [-20.0])
        >>> RationaleDPO(beta=1.0, gamma=0.1)(batch).loss  # log(1 + exp(-2)) + log(1 + exp(2))
        tensor([2.2539])
    """

    data = ("pairs",)
    use_when = "Each pair comes with a text that says why the chosen response is better."

    def __init__(self, *, beta: float = 0.1, gamma: float = 0.1, view: RationaleView = RATIONALE) -> None:
        super().__init__(score=LogRatio(beta), terms=[LogisticRationale(gamma, view=view)])

    beta = property(lambda self: self.score.beta)
    gamma = property(lambda self: self.terms[0].gamma)
    view = property(lambda self: self.terms[0].view)


class RationaleORPO(Compose, ReferenceFreeObjective):
    """ORPO with rationales (simple RORPO): −ℓ̄_w − λ log σ(log[odds(y_w) / odds(y_l)]) − γ ℓ̄(r).

    Just et al., arXiv 2407.14477, as in their code: log-probs are means per token, and λ and γ those of its
    configuration ``rorpo-simple``. With γ = 0 it is ORPO. The variant with −log σ(γ ℓ̄(r)) is a composition
    with ``LogisticRationale``.

    Args:
        weight: λ ≥ 0, of the odds-ratio term.
        gamma: γ ≥ 0.
        view: the question and the answer.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = with_view(example([-8.0, -8.0]), "rationale", [-20.0])  # 4 tokens each
        >>> RationaleORPO(weight=0.0, gamma=1.0)(batch).loss
        tensor([7.])
    """

    data = ("pairs",)
    use_when = "As RDPO, with a base model that was never fine-tuned and no memory for a reference."

    def __init__(self, *, weight: float = 0.1, gamma: float = 1.0, view: RationaleView = RATIONALE) -> None:
        super().__init__(
            score=LogOdds(),
            structure=MeanOfPairs(),
            weights=[ConstantWeight(non_negative("weight", weight))],
            terms=[NegativeLogLikelihood(), RationaleNegativeLogLikelihood(gamma, "token", view)],
        )

    weight = property(lambda self: self.weights[0].value)
    gamma = property(lambda self: self.terms[1].gamma)
    view = property(lambda self: self.terms[1].view)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and the rewards λℓ̄."""
        mean = batch.policy.mean.detach().where(batch.present, 0.0)
        return dataclasses.replace(super().forward(batch), reward=self.weight * mean)

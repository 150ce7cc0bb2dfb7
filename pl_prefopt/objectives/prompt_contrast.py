"""Rc-DPO: one response to two prompts, of which it fits one better."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, ReferenceObjective
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.scores import LogRatio, Scored
from pl_prefopt.objectives.terms import mean_where
from pl_prefopt.pairing import best
from pl_prefopt.types import Outcome, ScoredBatch
from pl_prefopt.views import ContrastPrompt

PAGE = "methods/more_inputs.md"
_VIEW = "contrast"


class RcDPO(ReferenceObjective):
    """DPO of prompts: −log σ(βa(y|x_w) − βa(y|x_l)), a the log-ratio of a response y that fits x_w better.

    The DPO form of the pairs within a sample of MAPL, arXiv 2505.12845, where x_w has instructions that y
    follows and x_l others. β was not found and has no default. Unlike in DPO the normaliser of the optimal
    policy, log Z(x), does not cancel between two prompts: that β(log Z(x_w) − log Z(x_l)) is 0 is an
    assumption. The loss changes with what is added to a prompt's log-ratios, but not with what is added to a
    response's.

    y is the row's best scored response, or the mean of best ones that tie. ``Sum`` adds DPO on the responses,
    with weights.

    Args:
        beta: β > 0, the strength of the KL penalty.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = example([-8.0], [-10.0], scores=[1.0])
        >>> RcDPO(beta=1.0)(with_view(batch, "contrast", [-11.0], [-10.0])).loss  # log(1 + exp(-3))
        tensor([0.0486])
    """

    data = ("pairs", "lists", "unpaired")
    use_when = "Each row has a second prompt, which its response fits less well, such as other instructions."

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = positive("beta", beta)

    @property
    def needs(self) -> Needs:
        """One reference, and the other prompt of each row, with gradient."""
        view = ContrastPrompt()
        return Needs(
            min_references=1,
            max_references=1,
            columns=(view.column,),
            views={_VIEW: view},
            trained_views=frozenset({_VIEW}),
        )

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """How often the response has the higher reward under its own prompt."""
        return (
            MetricInfo(
                name="contrast_accuracy",
                help="Share of rows whose response has the higher reward under its own prompt.",
                better="higher",
            ),
        )

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each row's loss, and the rewards under its own prompt."""
        chosen = best(batch.scores, batch.present)
        reward = self._reward(batch, batch.present)
        margin = torch.where(chosen, reward - self._reward(batch.views[_VIEW], batch.present), 0.0)
        counted = chosen.any(dim=-1)
        right = mean_where(chosen, (margin.sign() + 1) / 2).detach()
        accuracy = right.sum() / counted.sum().clamp(min=1)
        return Outcome(
            loss=mean_where(chosen, -logsigmoid(margin)),
            counted=counted,
            reward=reward.detach(),
            stats={"contrast_accuracy": accuracy},
        )

    def _reward(self, scored: Scored, present: Tensor) -> Tensor:
        return torch.where(present, LogRatio(self.beta).reward(scored), 0.0)

"""The registry of metrics, from which tables, dashboards, reports and checks are derived.

The command line reads the entries from this file without importing it, so their texts are plain literals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torchmetrics import Metric

from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics.grades import GradeKendall, GradePearson, GradeSpearman
from pl_prefopt.metrics.lists import NDCG, BestOfN, KendallWithin, LikelihoodGap, RankLikelihood
from pl_prefopt.metrics.losses import LossMean
from pl_prefopt.metrics.pairs import (
    ChosenLogProb,
    ChosenReward,
    LogRatioMargin,
    Margin,
    NormalizedRankingAccuracy,
    PreferenceAccuracy,
    RankingAccuracy,
    RejectedLogProb,
    RejectedReward,
    ViewAccuracy,
    ViewMargin,
)
from pl_prefopt.metrics.responses import LengthBias, MeanLogRatio

_PAIRS, _SCORES, _LISTS = "pairs", "agreement with scores", "lists"
_RANKING, _LIKELIHOOD, _REFERENCES = "the policy's own ranking", "likelihood", "references"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredMetric(MetricInfo):
    """A metric that ``build_suite`` builds.

    Attributes:
        build: makes it; called with ``reference=k`` for each reference or ``view=name`` for each judged view
            where the name has a place for them.
        log_probs: whether it reads log-probs of the policy.
    """

    build: Callable[..., Metric]
    log_probs: bool = False

    def built(self, num_references: int, views: Sequence[str]) -> Iterator[tuple[str, Metric]]:
        """Yield the metrics of a run by their names."""
        if "{k}" in self.name:
            yield from ((self.name.format(k=k), self.build(reference=k)) for k in range(num_references))
        elif "{view}" in self.name:
            yield from ((self.name.format(view=view), self.build(view=view)) for view in views)
        else:
            yield self.name, self.build()


REGISTRY: tuple[RegisteredMetric, ...] = (
    RegisteredMetric(
        name="loss",
        help="Mean over prompts of the objective's loss.",
        group=_PAIRS,
        better="lower",
        headline=True,
        progress_bar=True,
        build=LossMean,
    ),
    RegisteredMetric(
        name="accuracy",
        help="Share of pairs in which the better response has the higher reward; ties count as 0.5.",
        range=(0.0, 1.0),
        unit="%",
        group=_PAIRS,
        better="higher",
        interval=True,
        headline=True,
        progress_bar=True,
        build=PreferenceAccuracy,
    ),
    RegisteredMetric(
        name="margin",
        help="Mean over pairs of the better response's reward minus the worse one's.",
        unit="nats",
        group=_PAIRS,
        better="higher",
        interval=True,
        headline=True,
        progress_bar=True,
        build=Margin,
    ),
    RegisteredMetric(
        name="chosen_reward",
        help="Mean over pairs of the better response's reward.",
        unit="nats",
        group=_PAIRS,
        plot="chosen against rejected reward",
        build=ChosenReward,
    ),
    RegisteredMetric(
        name="rejected_reward",
        help="Mean over pairs of the worse response's reward.",
        unit="nats",
        group=_PAIRS,
        plot="chosen against rejected reward",
        build=RejectedReward,
    ),
    RegisteredMetric(
        name="accuracy_{view}",
        help="As accuracy, of the rewards on a second view of the objective, such as Sr-DPO's quality.",
        range=(0.0, 1.0),
        unit="%",
        group=_PAIRS,
        better="higher",
        interval=True,
        plot="accuracy on second views",
        build=ViewAccuracy,
    ),
    RegisteredMetric(
        name="margin_{view}",
        help="As margin, of the rewards on a second view of the objective.",
        unit="nats",
        group=_PAIRS,
        interval=True,
        plot="margin on second views",
        build=ViewMargin,
    ),
    RegisteredMetric(
        name="pearson",
        help="Pearson's r of reward margin and score difference over the pairs of graded rows.",
        range=(-1.0, 1.0),
        group=_SCORES,
        better="higher",
        logged="evaluation",
        interval=True,
        plot="correlations of margin and score",
        headline=True,
        build=GradePearson,
    ),
    RegisteredMetric(
        name="spearman",
        help="Spearman's ρ of reward margin and score difference over the pairs of graded rows.",
        range=(-1.0, 1.0),
        group=_SCORES,
        better="higher",
        logged="evaluation",
        interval=True,
        plot="correlations of margin and score",
        headline=True,
        build=GradeSpearman,
    ),
    RegisteredMetric(
        name="kendall",
        help="Kendall's τ-b of reward margin and score difference over the pairs of graded rows.",
        range=(-1.0, 1.0),
        group=_SCORES,
        better="higher",
        logged="evaluation",
        interval=True,
        plot="correlations of margin and score",
        headline=True,
        build=GradeKendall,
    ),
    RegisteredMetric(
        name="best_of_n",
        help="Share of prompts whose highest reward goes to a response of the highest score.",
        range=(0.0, 1.0),
        unit="%",
        group=_LISTS,
        better="higher",
        logged="evaluation",
        plot="order within a prompt",
        headline=True,
        build=BestOfN,
    ),
    RegisteredMetric(
        name="ndcg",
        help="Mean over prompts of the normalised discounted cumulative gain of the order by reward.",
        range=(0.0, 1.0),
        group=_LISTS,
        better="higher",
        logged="evaluation",
        plot="order within a prompt",
        build=NDCG,
    ),
    RegisteredMetric(
        name="kendall_within",
        help="Mean over prompts of Kendall's τ-b of reward and score within the prompt.",
        range=(-1.0, 1.0),
        group=_LISTS,
        better="higher",
        logged="evaluation",
        plot="order within a prompt",
        build=KendallWithin,
    ),
    RegisteredMetric(
        name="ranking_accuracy",
        help="Share of pairs in which the policy gives the better response the higher log-prob.",
        range=(0.0, 1.0),
        unit="%",
        group=_RANKING,
        better="higher",
        logged="evaluation",
        plot="accuracy of the policy's own ranking",
        headline=True,
        build=RankingAccuracy,
        log_probs=True,
    ),
    RegisteredMetric(
        name="ranking_accuracy_normalized",
        help="As ranking_accuracy, with the average log-prob per token.",
        range=(0.0, 1.0),
        unit="%",
        group=_RANKING,
        better="higher",
        logged="evaluation",
        plot="accuracy of the policy's own ranking",
        build=NormalizedRankingAccuracy,
        log_probs=True,
    ),
    RegisteredMetric(
        name="chosen_logp",
        help="Mean over pairs of the better response's log-prob (a sum over tokens) under the policy.",
        unit="nats",
        group=_LIKELIHOOD,
        better="higher",
        plot="chosen against rejected log-prob",
        build=ChosenLogProb,
        log_probs=True,
    ),
    RegisteredMetric(
        name="rejected_logp",
        help="Mean over pairs of the worse response's log-prob (a sum over tokens) under the policy.",
        unit="nats",
        group=_LIKELIHOOD,
        plot="chosen against rejected log-prob",
        build=RejectedLogProb,
        log_probs=True,
    ),
    RegisteredMetric(
        name="likelihood_best",
        help="Mean over prompts of the best response's p = exp(ℓ̄), ℓ̄ its average log-prob per token.",
        range=(0.0, 1.0),
        group=_LIKELIHOOD,
        better="higher",
        logged="evaluation",
        plot="likelihood by rank",
        build=functools.partial(RankLikelihood, rank=1),
        log_probs=True,
    ),
    RegisteredMetric(
        name="likelihood_rank_2",
        help="As likelihood_best, of the second-best response.",
        range=(0.0, 1.0),
        group=_LIKELIHOOD,
        logged="evaluation",
        plot="likelihood by rank",
        build=functools.partial(RankLikelihood, rank=2),
        log_probs=True,
    ),
    RegisteredMetric(
        name="likelihood_rank_3",
        help="As likelihood_best, of the third-best response.",
        range=(0.0, 1.0),
        group=_LIKELIHOOD,
        logged="evaluation",
        plot="likelihood by rank",
        build=functools.partial(RankLikelihood, rank=3),
        log_probs=True,
    ),
    RegisteredMetric(
        name="likelihood_rank_4",
        help="As likelihood_best, of the fourth-best response.",
        range=(0.0, 1.0),
        group=_LIKELIHOOD,
        logged="evaluation",
        plot="likelihood by rank",
        build=functools.partial(RankLikelihood, rank=4),
        log_probs=True,
    ),
    RegisteredMetric(
        name="likelihood_gap",
        help="Mean over prompts of the best response's p minus the mean p of those below it.",
        range=(-1.0, 1.0),
        group=_LIKELIHOOD,
        better="higher",
        logged="evaluation",
        build=LikelihoodGap,
        log_probs=True,
    ),
    RegisteredMetric(
        name="length_bias",
        help="Pearson's r of reward and response length over all responses.",
        range=(-1.0, 1.0),
        group=_LIKELIHOOD,
        logged="evaluation",
        headline=True,
        build=LengthBias,
    ),
    RegisteredMetric(
        name="log_ratio_{k}",
        help="Mean log-ratio over responses: the policy's log-prob minus that of reference k, from 0.",
        unit="nats",
        group=_REFERENCES,
        logged="evaluation",
        plot="mean log-ratio to each reference",
        headline=True,
        build=MeanLogRatio,
        log_probs=True,
    ),
    RegisteredMetric(
        name="log_ratio_margin_{k}",
        help="Mean over pairs of h, the difference of log-ratios to reference k: a margin without β.",
        unit="nats",
        group=_REFERENCES,
        better="higher",
        logged="evaluation",
        interval=True,
        plot="log-ratio margin to each reference",
        build=LogRatioMargin,
        log_probs=True,
    ),
)
"""The metrics, in display order."""

METRIC_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(info.label for info in REGISTRY if info.group == group)
    for group in dict.fromkeys(info.group for info in REGISTRY)
}
"""Names by the title under which tables list them."""

METRIC_HELP: dict[str, str] = {
    **{info.label: info.help for info in REGISTRY},
    "X_low": "Lower end of the 95 % bootstrap interval over prompts of the metric X; in tests only.",
    "X_high": "Upper end of that interval.",
}
"""One sentence for each name, without the stage.

``log_ratio_k`` stands for ``log_ratio_0``, ``log_ratio_1`` and so on, ``accuracy_view`` for
``accuracy_quality`` and so on, and ``X_low`` for the intervals that ``BootstrapIntervals`` lists.
"""

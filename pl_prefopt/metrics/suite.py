"""Which metrics a stage has, under which names, and what each name means."""

from __future__ import annotations

from collections.abc import Sequence

from torchmetrics import Metric, MetricCollection

from pl_prefopt.metrics.grades import GradeKendall, GradePearson, GradeSpearman
from pl_prefopt.metrics.intervals import BootstrapIntervals
from pl_prefopt.metrics.lists import NDCG, BestOfN, KendallWithin, LikelihoodGap, RankLikelihood
from pl_prefopt.metrics.pairs import (
    ChosenLogProb,
    ChosenReward,
    Margin,
    Marginal,
    NormalizedRankingAccuracy,
    PreferenceAccuracy,
    RankingAccuracy,
    RejectedLogProb,
    RejectedReward,
    ViewAccuracy,
    ViewMargin,
)
from pl_prefopt.metrics.responses import LengthBias, SequenceKL

METRIC_HELP: dict[str, str] = {
    "accuracy": "Share of pairs in which the better response has the higher reward; a draw counts one half.",
    "margin": "Mean over pairs of the better response's reward minus the worse one's.",
    "chosen_reward": "Mean over pairs of the better response's reward.",
    "rejected_reward": "Mean over pairs of the worse response's reward.",
    "chosen_logp": "Mean over pairs of the better response's log-prob (a sum over tokens) under the policy.",
    "rejected_logp": "Mean over pairs of the worse response's log-prob (a sum over tokens) under the policy.",
    "pearson": "Pearson's r of reward margin and score difference over the pairs of graded rows.",
    "spearman": "Spearman's ρ of reward margin and score difference over the pairs of graded rows.",
    "kendall": "Kendall's τ-b of reward margin and score difference over the pairs of graded rows.",
    "ranking_accuracy": "Share of pairs in which the policy gives the better response the higher log-prob.",
    "ranking_accuracy_normalized": "As ranking_accuracy, with the average log-prob a token.",
    "best_of_n": "Share of prompts whose highest reward goes to a response of the highest score.",
    "ndcg": "Mean over prompts of the normalised discounted cumulative gain of the order by reward.",
    "kendall_within": "Mean over prompts of Kendall's τ-b of reward and score within the prompt.",
    "likelihood_best": "Mean over prompts of the best response's p = exp(ℓ̄), ℓ̄ its average log-prob a token.",
    "likelihood_rank_2": "As likelihood_best, of the second-best response.",
    "likelihood_rank_3": "As likelihood_best, of the third-best response.",
    "likelihood_rank_4": "As likelihood_best, of the fourth-best response.",
    "likelihood_gap": "Mean over prompts of the best response's p minus the mean p of those below it.",
    "kl_k": "Mean over responses of the policy's log-prob minus that of reference k, counted from 0.",
    "length_bias": "Pearson's r of reward and response length over all responses.",
    "marginal_k": "Mean over pairs of h, the difference of log-ratios to reference k: a margin without β.",
    "accuracy_v": "As accuracy, of the rewards on the objective's second view v, such as Sr-DPO's quality.",
    "margin_v": "As margin, of the rewards on the objective's second view v.",
    "X_low": "Lower end of the 95 % bootstrap interval over prompts of the metric X; in tests only.",
    "X_high": "Upper end of that interval.",
}
"""One sentence for each name, without the stage.

``kl_k`` stands for ``kl_0``, ``kl_1`` and so on, ``accuracy_v`` for ``accuracy_quality`` and so on, and
``X_low`` for the intervals that ``BootstrapIntervals`` lists.
"""


def build_suite(stage: str, num_references: int, views: Sequence[str] = ()) -> MetricCollection:
    """Build the metrics of a stage; their names begin with ``{stage}/``.

    ``train`` gets the cheap means only; any other stage gets all, and ``test`` intervals too. A value is
    NaN where nothing was counted, such as a correlation on rows without grades.

    Args:
        stage: ``train``, ``val``, ``test`` or ``predict``.
        num_references: K; there is one ``kl_k`` for each.
        views: the second views whose rewards are judged.

    Returns:
        A collection whose ``update`` takes ``reward``, ``policy``, ``references``, ``scores``, ``present``,
        ``graded``, ``view_rewards`` and ``columns`` by keyword and hands each metric what it asks for.
    """
    metrics = _cheap_means() | _on_views(views)
    if stage != "train":
        metrics |= _thorough(num_references)
    if stage == "test":
        metrics |= {"intervals": BootstrapIntervals(num_references=num_references, views=views)}
    # Without `compute_groups=False` two metrics whose states agree after the first batch, as all rewards
    # of an untrained policy do, would share one state from then on.
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)


def columns_read(suite: MetricCollection) -> dict[str, str]:
    """Return the columns that the metrics of a suite ask for, each with the class of one that does."""
    kinds = [type(metric) for metric in suite.values()]
    return {column: kind.__name__ for kind in kinds for column in getattr(kind, "columns", ())}


def _cheap_means() -> dict[str, Metric | MetricCollection]:
    return {
        "accuracy": PreferenceAccuracy(),
        "margin": Margin(),
        "chosen_reward": ChosenReward(),
        "rejected_reward": RejectedReward(),
        "chosen_logp": ChosenLogProb(),
        "rejected_logp": RejectedLogProb(),
    }


def _on_views(views: Sequence[str]) -> dict[str, Metric | MetricCollection]:
    return {
        **{f"accuracy_{view}": ViewAccuracy(view=view) for view in views},
        **{f"margin_{view}": ViewMargin(view=view) for view in views},
    }


def _thorough(num_references: int) -> dict[str, Metric | MetricCollection]:
    return {
        "pearson": GradePearson(),
        "spearman": GradeSpearman(),
        "kendall": GradeKendall(),
        "ranking_accuracy": RankingAccuracy(),
        "ranking_accuracy_normalized": NormalizedRankingAccuracy(),
        "best_of_n": BestOfN(),
        "ndcg": NDCG(),
        "kendall_within": KendallWithin(),
        "likelihood_best": RankLikelihood(rank=1),
        **{f"likelihood_rank_{rank}": RankLikelihood(rank=rank) for rank in (2, 3, 4)},
        "likelihood_gap": LikelihoodGap(),
        **{f"kl_{k}": SequenceKL(reference=k) for k in range(num_references)},
        **{f"marginal_{k}": Marginal(reference=k) for k in range(num_references)},
        "length_bias": LengthBias(),
    }

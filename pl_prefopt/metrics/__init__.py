"""Metrics: torchmetrics classes that read rewards, log-probs and scores, and one suite of them per stage."""

from pl_prefopt.metrics.grades import GradeKendall, GradePearson, GradeSpearman
from pl_prefopt.metrics.groups import METRIC_GROUPS, grouped
from pl_prefopt.metrics.intervals import BootstrapIntervals
from pl_prefopt.metrics.lists import NDCG, BestOfN, KendallWithin, LikelihoodGap, RankLikelihood
from pl_prefopt.metrics.losses import LossMean
from pl_prefopt.metrics.pairs import (
    ChosenLogProb,
    ChosenReward,
    Margin,
    Marginal,
    Margins,
    NormalizedRankingAccuracy,
    PreferenceAccuracy,
    RankingAccuracy,
    RejectedLogProb,
    RejectedReward,
    ViewAccuracy,
    ViewMargin,
)
from pl_prefopt.metrics.responses import LengthBias, SequenceKL
from pl_prefopt.metrics.suite import METRIC_HELP, build_suite, columns_read

__all__ = [
    "METRIC_GROUPS",
    "METRIC_HELP",
    "NDCG",
    "BestOfN",
    "BootstrapIntervals",
    "ChosenLogProb",
    "ChosenReward",
    "GradeKendall",
    "GradePearson",
    "GradeSpearman",
    "KendallWithin",
    "LengthBias",
    "LikelihoodGap",
    "LossMean",
    "Margin",
    "Marginal",
    "Margins",
    "NormalizedRankingAccuracy",
    "PreferenceAccuracy",
    "RankLikelihood",
    "RankingAccuracy",
    "RejectedLogProb",
    "RejectedReward",
    "SequenceKL",
    "ViewAccuracy",
    "ViewMargin",
    "build_suite",
    "columns_read",
    "grouped",
]

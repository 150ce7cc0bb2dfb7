"""Metrics: torchmetrics classes that read rewards, log-probs and scores, and one suite of them per stage.

Each class can be used alone with plain tensors; ``REGISTRY`` lists those that a run measures, with their
names and descriptions.
"""

from pl_prefopt.metric_info import MetricInfo, find_info, grouped
from pl_prefopt.metrics.grades import GradeKendall, GradePearson, GradeSpearman
from pl_prefopt.metrics.intervals import BootstrapIntervals
from pl_prefopt.metrics.lists import NDCG, BestOfN, KendallWithin, LikelihoodGap, RankLikelihood
from pl_prefopt.metrics.losses import LossMean
from pl_prefopt.metrics.pairs import (
    ChosenLogProb,
    ChosenReward,
    LogRatioMargin,
    Margin,
    Margins,
    NormalizedRankingAccuracy,
    PreferenceAccuracy,
    RankingAccuracy,
    RejectedLogProb,
    RejectedReward,
    ViewAccuracy,
    ViewMargin,
)
from pl_prefopt.metrics.registry import METRIC_GROUPS, METRIC_HELP, REGISTRY, RegisteredMetric
from pl_prefopt.metrics.responses import LengthBias, SequenceKL
from pl_prefopt.metrics.states import Correlation, Mean, PreferenceMetric, Share
from pl_prefopt.metrics.suite import INPUTS, build_suite, check_added, columns_read, with_info

__all__ = [
    "INPUTS",
    "METRIC_GROUPS",
    "METRIC_HELP",
    "NDCG",
    "REGISTRY",
    "BestOfN",
    "BootstrapIntervals",
    "ChosenLogProb",
    "ChosenReward",
    "Correlation",
    "GradeKendall",
    "GradePearson",
    "GradeSpearman",
    "KendallWithin",
    "LengthBias",
    "LikelihoodGap",
    "LogRatioMargin",
    "LossMean",
    "Margin",
    "Margins",
    "Mean",
    "MetricInfo",
    "NormalizedRankingAccuracy",
    "PreferenceAccuracy",
    "PreferenceMetric",
    "RankLikelihood",
    "RankingAccuracy",
    "RegisteredMetric",
    "RejectedLogProb",
    "RejectedReward",
    "SequenceKL",
    "Share",
    "ViewAccuracy",
    "ViewMargin",
    "build_suite",
    "check_added",
    "columns_read",
    "find_info",
    "grouped",
    "with_info",
]

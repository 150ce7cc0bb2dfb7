"""Metrics: torchmetrics classes that read rewards, log-probs and scores, and one suite of them per stage.

Each class can be used alone with plain tensors; ``REGISTRY`` lists those that a run measures, with their
names and descriptions.
"""

from pl_prefopt.metric_info import MetricInfo, find_info, grouped
from pl_prefopt.metrics.agreement import (
    LengthRegression,
    PositionBias,
    cohen_kappa,
    coverage,
    independent_coverage,
    krippendorff_alpha,
    length_bias,
    order_effects,
    position_bias,
    reversal_accuracy,
    self_preference,
)
from pl_prefopt.metrics.calibration import (
    Bounds,
    ExpectedCalibrationError,
    IdealizedRankingAccuracy,
    calibration_error,
    dpo_loss_bound,
    idealised_log_ratio,
    idealised_ranking_accuracy,
)
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
from pl_prefopt.metrics.responses import LengthBias, MeanLogRatio
from pl_prefopt.metrics.states import Correlation, Mean, PreferenceMetric, Share
from pl_prefopt.metrics.strengths import (
    bradley_terry,
    elo,
    is_connected,
    relative_confidence,
    selective_auc,
    trueskill,
)
from pl_prefopt.metrics.suite import INPUTS, build_suite, check_added, columns_read, update, with_info

__all__ = [
    "INPUTS",
    "METRIC_GROUPS",
    "METRIC_HELP",
    "NDCG",
    "REGISTRY",
    "BestOfN",
    "BootstrapIntervals",
    "Bounds",
    "ChosenLogProb",
    "ChosenReward",
    "Correlation",
    "ExpectedCalibrationError",
    "GradeKendall",
    "GradePearson",
    "GradeSpearman",
    "IdealizedRankingAccuracy",
    "KendallWithin",
    "LengthBias",
    "LengthRegression",
    "LikelihoodGap",
    "LogRatioMargin",
    "LossMean",
    "Margin",
    "Margins",
    "Mean",
    "MeanLogRatio",
    "MetricInfo",
    "NormalizedRankingAccuracy",
    "PositionBias",
    "PreferenceAccuracy",
    "PreferenceMetric",
    "RankLikelihood",
    "RankingAccuracy",
    "RegisteredMetric",
    "RejectedLogProb",
    "RejectedReward",
    "Share",
    "ViewAccuracy",
    "ViewMargin",
    "bradley_terry",
    "build_suite",
    "calibration_error",
    "check_added",
    "cohen_kappa",
    "columns_read",
    "coverage",
    "dpo_loss_bound",
    "elo",
    "find_info",
    "grouped",
    "idealised_log_ratio",
    "idealised_ranking_accuracy",
    "independent_coverage",
    "is_connected",
    "krippendorff_alpha",
    "length_bias",
    "order_effects",
    "position_bias",
    "relative_confidence",
    "reversal_accuracy",
    "selective_auc",
    "self_preference",
    "trueskill",
    "update",
    "with_info",
]

"""The figures of a report. Each function makes one, or says why it cannot."""

from pl_prefopt.report.figures.curves import learning_curves
from pl_prefopt.report.figures.panel import Panel
from pl_prefopt.report.figures.rewards import margin_against_gap, reward_against_length, reward_by_label
from pl_prefopt.report.figures.scales import per_scale
from pl_prefopt.report.figures.selection import best_of_n, margin_distribution
from pl_prefopt.report.figures.shares import (
    accuracy_by_gap,
    accuracy_by_source,
    accuracy_by_user,
    calibration,
)

__all__ = [
    "Panel",
    "accuracy_by_gap",
    "accuracy_by_source",
    "accuracy_by_user",
    "best_of_n",
    "calibration",
    "learning_curves",
    "margin_against_gap",
    "margin_distribution",
    "per_scale",
    "reward_against_length",
    "reward_by_label",
]

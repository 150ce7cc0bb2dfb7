"""Sweeps: the settings of a search, and its trials on Optuna."""

from pl_prefopt.sweeps.plan import Choices, Prune, Range, Sweep
from pl_prefopt.sweeps.trials import STORAGE, Pruned, Report, Train, TrialResult, search

__all__ = [
    "STORAGE",
    "Choices",
    "Prune",
    "Pruned",
    "Range",
    "Report",
    "Sweep",
    "Train",
    "TrialResult",
    "search",
]

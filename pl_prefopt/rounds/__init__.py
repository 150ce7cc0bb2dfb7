"""Rounds of sampling, judging, selecting, training and evaluating."""

from pl_prefopt.rounds.constrained import ConstrainedScores
from pl_prefopt.rounds.judging import CombinedScores, OwnGrades
from pl_prefopt.rounds.optimizer_state import OptimizerState
from pl_prefopt.rounds.plan import Fit, HeldOut, Rounds, Stage, fit_settings, stage_named, stages_of
from pl_prefopt.rounds.selection import (
    AllResponses,
    AllWithWinRates,
    Best,
    BestAgainstWorst,
    Candidate,
    Candidates,
    CurriculumPairs,
    GoldAgainstOwn,
    LargeMargins,
    Selection,
    SoftPairs,
)

__all__ = [
    "AllResponses",
    "AllWithWinRates",
    "Best",
    "BestAgainstWorst",
    "Candidate",
    "Candidates",
    "CombinedScores",
    "ConstrainedScores",
    "CurriculumPairs",
    "Fit",
    "GoldAgainstOwn",
    "HeldOut",
    "LargeMargins",
    "OptimizerState",
    "OwnGrades",
    "Rounds",
    "Selection",
    "SoftPairs",
    "Stage",
    "fit_settings",
    "stage_named",
    "stages_of",
]

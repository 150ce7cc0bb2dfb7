"""Rounds of sampling, judging, selecting, training and evaluating."""

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
    "CurriculumPairs",
    "Fit",
    "GoldAgainstOwn",
    "HeldOut",
    "LargeMargins",
    "Rounds",
    "Selection",
    "SoftPairs",
    "Stage",
    "fit_settings",
    "stage_named",
    "stages_of",
]

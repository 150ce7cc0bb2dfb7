"""Judges: what grades the responses of rows, or compares them in pairs."""

from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Matrix, Verdict, matrix_of, pairs, win_rates
from pl_prefopt.judges.classifier import SequenceClassifier
from pl_prefopt.judges.comparisons import ComparisonRows, GenerativePairs
from pl_prefopt.judges.likelihoods import (
    Exemplar,
    FollowUpLikelihood,
    ImplicitReward,
    LogProbNorm,
    QualityScore,
    StrongOverWeak,
)
from pl_prefopt.judges.local import LocalJudge, LocalPairs, LocalScores
from pl_prefopt.judges.rules import Rule
from pl_prefopt.judges.server import Prices, ServerJudge, ServerPairs, ServerScores
from pl_prefopt.judges.templating import JudgeTemplate
from pl_prefopt.servers import Patience

__all__ = [
    "ComparisonRows",
    "Cost",
    "Exemplar",
    "FollowUpLikelihood",
    "GenerativePairs",
    "Gives",
    "ImplicitReward",
    "Judge",
    "JudgeTemplate",
    "JudgedRow",
    "LocalJudge",
    "LocalPairs",
    "LocalScores",
    "LogProbNorm",
    "Matrix",
    "Patience",
    "Prices",
    "QualityScore",
    "Rule",
    "SequenceClassifier",
    "ServerJudge",
    "ServerPairs",
    "ServerScores",
    "StrongOverWeak",
    "Verdict",
    "matrix_of",
    "pairs",
    "win_rates",
]

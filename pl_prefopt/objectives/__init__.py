"""Objectives: a loss per prompt and a reward per response, with declared needs.

Most are compositions: ``Compose`` combines a score, a structure, a link, offsets, weights and terms, and the
named classes are such compositions with the settings of their papers. ``Sum`` is a weighted sum of
objectives.
"""

from pl_prefopt.objectives.base import Needs, Objective, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from pl_prefopt.objectives.dpo import DPO, DPOP, FDPO, IPO, WPO, Hinge, RobustDPO
from pl_prefopt.objectives.kto import KTO
from pl_prefopt.objectives.links import HingeLink, Link, Logistic, Robust, Squared
from pl_prefopt.objectives.mixture import (
    AdaptiveClip,
    AdaptiveWeights,
    Aggregate,
    Clip,
    FixedClip,
    FixedWeights,
    Geometric,
    Harmonic,
    UniformWeights,
    Weights,
)
from pl_prefopt.objectives.mppo import (
    ListMLE,
    MPPOComparison,
    MPPOObjective,
    MPPOPointObjective,
    PairMCM,
    PairMCS,
    PairMNM,
    PairMNS,
    PairSingle,
    PointCE,
    PointMSE,
)
from pl_prefopt.objectives.mrpo import MRPO, MultiDPO, MultiReferenceObjective
from pl_prefopt.objectives.offsets import (
    Drop,
    LengthGap,
    LogScoreGap,
    Margin,
    Offset,
    Refinement,
    ScoreGap,
)
from pl_prefopt.objectives.pair_references import PairReference, SingleReference, VirtualReference
from pl_prefopt.objectives.pair_weights import ConstantWeight, PairWeight, PolicyProbability
from pl_prefopt.objectives.pairs import PairwiseReferenceFreeObjective, PairwiseReferenceObjective
from pl_prefopt.objectives.reference_free import ORPO, SimPO
from pl_prefopt.objectives.scores import (
    LogOdds,
    LogRatio,
    MeanLikelihood,
    MeanLogProb,
    MeanLogRatio,
    ReferenceScore,
    ResponseScore,
    Score,
    SumLogProb,
    VirtualLogRatio,
)
from pl_prefopt.objectives.self_refined import SelfRefinedObjective, SrDPO, SrIPO
from pl_prefopt.objectives.structures import (
    MeanOfPairs,
    MergedPairs,
    MergedPerWinner,
    PlackettLuce,
    Structure,
    SumOfPairs,
    SumPerWinner,
)
from pl_prefopt.objectives.sums import Sum
from pl_prefopt.objectives.terms import NegativeLogLikelihood, Term
from pl_prefopt.objectives.token_level import LDDPO, TDPO1, TDPO2, TGDPO, TokenLevelObjective
from pl_prefopt.objectives.token_scores import (
    GuidedLogRatio,
    LengthDesensitized,
    LogRatioKL,
    LogRatioStoppedKL,
)

__all__ = [
    "DPO",
    "DPOP",
    "FDPO",
    "IPO",
    "KTO",
    "LDDPO",
    "MRPO",
    "ORPO",
    "TDPO1",
    "TDPO2",
    "TGDPO",
    "WPO",
    "AdaptiveClip",
    "AdaptiveWeights",
    "Aggregate",
    "AlphaDivergence",
    "Clip",
    "Comparisons",
    "Compose",
    "ConstantWeight",
    "Divergence",
    "Drop",
    "FixedClip",
    "FixedWeights",
    "ForwardKL",
    "Geometric",
    "GuidedLogRatio",
    "Harmonic",
    "Hinge",
    "HingeLink",
    "JensenShannon",
    "LengthDesensitized",
    "LengthGap",
    "Link",
    "ListMLE",
    "LogOdds",
    "LogRatio",
    "LogRatioKL",
    "LogRatioStoppedKL",
    "LogScoreGap",
    "Logistic",
    "MPPOComparison",
    "MPPOObjective",
    "MPPOPointObjective",
    "Margin",
    "MeanLikelihood",
    "MeanLogProb",
    "MeanLogRatio",
    "MeanOfPairs",
    "MergedPairs",
    "MergedPerWinner",
    "MultiDPO",
    "MultiReferenceObjective",
    "Needs",
    "NegativeLogLikelihood",
    "Objective",
    "Offset",
    "PairMCM",
    "PairMCS",
    "PairMNM",
    "PairMNS",
    "PairReference",
    "PairSingle",
    "PairWeight",
    "PairwiseReferenceFreeObjective",
    "PairwiseReferenceObjective",
    "PlackettLuce",
    "PointCE",
    "PointMSE",
    "PolicyProbability",
    "ReferenceFreeObjective",
    "ReferenceObjective",
    "ReferenceScore",
    "Refinement",
    "ResponseScore",
    "ReverseKL",
    "Robust",
    "RobustDPO",
    "Score",
    "ScoreGap",
    "SelfRefinedObjective",
    "SimPO",
    "SingleReference",
    "Squared",
    "SrDPO",
    "SrIPO",
    "Structure",
    "Sum",
    "SumLogProb",
    "SumOfPairs",
    "SumPerWinner",
    "Term",
    "TokenLevelObjective",
    "UniformWeights",
    "VirtualLogRatio",
    "VirtualReference",
    "Weights",
]

"""Objectives: a loss per prompt and a reward per response, with declared needs.

Most are compositions: ``Compose`` combines a score, a structure, a link, offsets, weights and terms, and the
named classes are such compositions with the settings of their papers. ``Sum`` is a weighted sum of
objectives.
"""

from pl_prefopt.objectives.anchored import NCA, APODown, APOZero, BCOPair, SPPOHard
from pl_prefopt.objectives.base import Needs, Objective, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.objectives.calibrated import VPO, XPO
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from pl_prefopt.objectives.dpo import DPO, DPOP, FDPO, IPO, WPO, Hinge, RobustDPO
from pl_prefopt.objectives.kto import KTO
from pl_prefopt.objectives.labels import ColumnLabel, ScoreLabel, SoftLabel
from pl_prefopt.objectives.likelihoods import ASFT, CPO, RRHF, AlphaPO, CPOSimPO, SLiCHF
from pl_prefopt.objectives.links import (
    ExactOptimization,
    HingeLink,
    Link,
    Logistic,
    LogRatioModulated,
    Robust,
    Squared,
)
from pl_prefopt.objectives.log_ratios import FlexibleLogRatio, GeometricLogRatio, PartialLogRatio
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
from pl_prefopt.objectives.noisy_labels import CDPO, DNO, EXO, OSP, DNOPrct
from pl_prefopt.objectives.offsets import (
    ColumnMargin,
    Drop,
    LengthGap,
    LogScoreGap,
    Margin,
    Offset,
    Refinement,
    ScoreGap,
)
from pl_prefopt.objectives.pair_margins import ODPO, AdaptiveMarginDPO, LengthDPO, SmPO
from pl_prefopt.objectives.pair_references import PairReference, SingleReference, VirtualReference
from pl_prefopt.objectives.pair_weights import ConstantWeight, PairWeight, PolicyProbability
from pl_prefopt.objectives.pairs import PairwiseReferenceFreeObjective, PairwiseReferenceObjective
from pl_prefopt.objectives.reference_free import ORPO, SimPO
from pl_prefopt.objectives.reference_strength import INPO, DiscoPOP, FlexDPO, GammaDPO, NormDPO
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
    TransformedMeanLogProb,
    VirtualLogRatio,
)
from pl_prefopt.objectives.self_refined import SelfRefinedObjective, SrDPO, SrIPO
from pl_prefopt.objectives.sft import SFT
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
from pl_prefopt.objectives.terms import (
    Calibration,
    NegativeLogLikelihood,
    SequenceNegativeLogLikelihood,
    Term,
)
from pl_prefopt.objectives.token_level import LDDPO, TDPO1, TDPO2, TGDPO, TokenLevelObjective
from pl_prefopt.objectives.token_scores import (
    GuidedLogRatio,
    LengthDesensitized,
    LogRatioKL,
    LogRatioStoppedKL,
)
from pl_prefopt.objectives.transport import AOT, AOTUnpaired
from pl_prefopt.objectives.two_sided import (
    AnchoredDown,
    AnchoredZero,
    BinaryClassification,
    HardWinRates,
    NoiseContrast,
    TwoSidedLink,
)
from pl_prefopt.objectives.unpaired import BCO, APOZeroUnpaired

__all__ = [
    "AOT",
    "ASFT",
    "BCO",
    "CDPO",
    "CPO",
    "DNO",
    "DPO",
    "DPOP",
    "EXO",
    "FDPO",
    "INPO",
    "IPO",
    "KTO",
    "LDDPO",
    "MRPO",
    "NCA",
    "ODPO",
    "ORPO",
    "OSP",
    "RRHF",
    "SFT",
    "TDPO1",
    "TDPO2",
    "TGDPO",
    "VPO",
    "WPO",
    "XPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "APOZeroUnpaired",
    "AdaptiveClip",
    "AdaptiveMarginDPO",
    "AdaptiveWeights",
    "Aggregate",
    "AlphaDivergence",
    "AlphaPO",
    "AnchoredDown",
    "AnchoredZero",
    "BCOPair",
    "BinaryClassification",
    "CPOSimPO",
    "Calibration",
    "Clip",
    "ColumnLabel",
    "ColumnMargin",
    "Comparisons",
    "Compose",
    "ConstantWeight",
    "DNOPrct",
    "DiscoPOP",
    "Divergence",
    "Drop",
    "ExactOptimization",
    "FixedClip",
    "FixedWeights",
    "FlexDPO",
    "FlexibleLogRatio",
    "ForwardKL",
    "GammaDPO",
    "Geometric",
    "GeometricLogRatio",
    "GuidedLogRatio",
    "HardWinRates",
    "Harmonic",
    "Hinge",
    "HingeLink",
    "JensenShannon",
    "LengthDPO",
    "LengthDesensitized",
    "LengthGap",
    "Link",
    "ListMLE",
    "LogOdds",
    "LogRatio",
    "LogRatioKL",
    "LogRatioModulated",
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
    "NoiseContrast",
    "NormDPO",
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
    "PartialLogRatio",
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
    "SLiCHF",
    "SPPOHard",
    "Score",
    "ScoreGap",
    "ScoreLabel",
    "SelfRefinedObjective",
    "SequenceNegativeLogLikelihood",
    "SimPO",
    "SingleReference",
    "SmPO",
    "SoftLabel",
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
    "TransformedMeanLogProb",
    "TwoSidedLink",
    "UniformWeights",
    "VirtualLogRatio",
    "VirtualReference",
    "Weights",
]

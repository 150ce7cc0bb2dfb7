"""Objectives: hyper-parameters, declared needs, and one call into `pl_prefopt.functional`."""

from pl_prefopt.objectives.base import Needs, Objective, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.objectives.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from pl_prefopt.objectives.dpo import DPO, DPOP, FDPO, IPO, Hinge, RobustDPO
from pl_prefopt.objectives.kto import KTO
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
    MPPOObjective,
    MPPOPairsObjective,
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
from pl_prefopt.objectives.pair_references import PairReference, SingleReference, VirtualReference
from pl_prefopt.objectives.pairs import PairwiseReferenceFreeObjective, PairwiseReferenceObjective
from pl_prefopt.objectives.reference_free import ORPO, SimPO
from pl_prefopt.objectives.self_refined import SelfRefinedObjective, SrDPO, SrIPO

__all__ = [
    "DPO",
    "DPOP",
    "FDPO",
    "IPO",
    "KTO",
    "MRPO",
    "ORPO",
    "AdaptiveClip",
    "AdaptiveWeights",
    "Aggregate",
    "AlphaDivergence",
    "Clip",
    "Divergence",
    "FixedClip",
    "FixedWeights",
    "ForwardKL",
    "Geometric",
    "Harmonic",
    "Hinge",
    "JensenShannon",
    "ListMLE",
    "MPPOObjective",
    "MPPOPairsObjective",
    "MPPOPointObjective",
    "MultiDPO",
    "MultiReferenceObjective",
    "Needs",
    "Objective",
    "PairMCM",
    "PairMCS",
    "PairMNM",
    "PairMNS",
    "PairReference",
    "PairSingle",
    "PairwiseReferenceFreeObjective",
    "PairwiseReferenceObjective",
    "PointCE",
    "PointMSE",
    "ReferenceFreeObjective",
    "ReferenceObjective",
    "ReverseKL",
    "RobustDPO",
    "SelfRefinedObjective",
    "SimPO",
    "SingleReference",
    "SrDPO",
    "SrIPO",
    "UniformWeights",
    "VirtualReference",
    "Weights",
]

"""Objectives: hyper-parameters, declared needs, and one call into `pl_prefopt.functional`."""

from pl_prefopt.objectives.base import Needs, Objective, ReferenceFreeObjective, ReferenceObjective
from pl_prefopt.objectives.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from pl_prefopt.objectives.dpo import DPO, DPOP, FDPO, IPO, Hinge, RobustDPO
from pl_prefopt.objectives.kto import KTO
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
from pl_prefopt.objectives.pairs import PairwiseReferenceFreeObjective, PairwiseReferenceObjective
from pl_prefopt.objectives.reference_free import ORPO, SimPO

__all__ = [
    "DPO",
    "DPOP",
    "FDPO",
    "IPO",
    "KTO",
    "ORPO",
    "AlphaDivergence",
    "Divergence",
    "ForwardKL",
    "Hinge",
    "JensenShannon",
    "ListMLE",
    "MPPOObjective",
    "MPPOPairsObjective",
    "MPPOPointObjective",
    "Needs",
    "Objective",
    "PairMCM",
    "PairMCS",
    "PairMNM",
    "PairMNS",
    "PairSingle",
    "PairwiseReferenceFreeObjective",
    "PairwiseReferenceObjective",
    "PointCE",
    "PointMSE",
    "ReferenceFreeObjective",
    "ReferenceObjective",
    "ReverseKL",
    "RobustDPO",
    "SimPO",
]

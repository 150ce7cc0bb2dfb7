"""Objectives: hyper-parameters, declared needs, and one call into `pl_prefopt.functional`."""

from pl_prefopt.objectives.base import Needs, Objective, ReferenceFreeObjective, ReferenceObjective

__all__ = ["Needs", "Objective", "ReferenceFreeObjective", "ReferenceObjective"]

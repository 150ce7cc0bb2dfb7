"""The algebra of rewards: transforms of one, combinations of several, and multipliers of constraints."""

from pl_prefopt.rewards.combinations import (
    HarmonicMean,
    Minimum,
    RewardCombination,
    SumOfTransforms,
    WeightedMean,
)
from pl_prefopt.rewards.multipliers import Multipliers
from pl_prefopt.rewards.transforms import Affine, LogSigmoid, RewardTransform, reference_level

__all__ = [
    "Affine",
    "HarmonicMean",
    "LogSigmoid",
    "Minimum",
    "Multipliers",
    "RewardCombination",
    "RewardTransform",
    "SumOfTransforms",
    "WeightedMean",
    "reference_level",
]

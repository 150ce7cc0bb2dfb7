"""Transforms of rows for ``data.transforms`` and ``prefopt transform``: clean, label, filter, make pairs."""

from pl_prefopt.data.transforms.base import Change, RowTransform
from pl_prefopt.data.transforms.chain import Transformed, transform_rows
from pl_prefopt.data.transforms.duplicates import RemoveDuplicates, RemoveLeakage, RemoveNearDuplicates
from pl_prefopt.data.transforms.filters import (
    BalanceLengths,
    CapSources,
    CrossFilter,
    KeepColumn,
    KeepScoreGap,
)
from pl_prefopt.data.transforms.labels import FlipWeak, SmoothWeak, SoftLabels, Strength
from pl_prefopt.data.transforms.pairs import AllPairs, BestAgainstEach, BestAgainstRest, PromptContrast

__all__ = [
    "AllPairs",
    "BalanceLengths",
    "BestAgainstEach",
    "BestAgainstRest",
    "CapSources",
    "Change",
    "CrossFilter",
    "FlipWeak",
    "KeepColumn",
    "KeepScoreGap",
    "PromptContrast",
    "RemoveDuplicates",
    "RemoveLeakage",
    "RemoveNearDuplicates",
    "RowTransform",
    "SmoothWeak",
    "SoftLabels",
    "Strength",
    "Transformed",
    "transform_rows",
]

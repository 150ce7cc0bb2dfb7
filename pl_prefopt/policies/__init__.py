"""The model that is trained: how it is described, loaded and adapted."""

from pl_prefopt.policies.adapters import alters_base, check_saved, keeps_base
from pl_prefopt.policies.build import build_frozen, build_policy, has_dropout
from pl_prefopt.policies.fast import check_fast_layers, with_fast_layers
from pl_prefopt.policies.half_precision import HALF, float32_by_default, full_precision_buffers
from pl_prefopt.policies.merging import merged
from pl_prefopt.policies.sharding import (
    check_shardable,
    check_sizes,
    check_splittable,
    layers_of,
    shard_whole,
)
from pl_prefopt.policies.sketch import sketch_frozen, sketch_policy, sketch_second_adapter
from pl_prefopt.policies.spec import FourBit, PolicySpec
from pl_prefopt.policies.split_loading import Make, load_split

__all__ = [
    "HALF",
    "FourBit",
    "Make",
    "PolicySpec",
    "alters_base",
    "build_frozen",
    "build_policy",
    "check_fast_layers",
    "check_saved",
    "check_shardable",
    "check_sizes",
    "check_splittable",
    "float32_by_default",
    "full_precision_buffers",
    "has_dropout",
    "keeps_base",
    "layers_of",
    "load_split",
    "merged",
    "shard_whole",
    "sketch_frozen",
    "sketch_policy",
    "sketch_second_adapter",
    "with_fast_layers",
]

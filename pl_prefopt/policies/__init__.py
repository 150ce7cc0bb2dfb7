"""The model that is trained: how it is described, loaded and adapted."""

from pl_prefopt.policies.build import build_frozen, build_policy
from pl_prefopt.policies.sharding import check_shardable, check_sizes, check_splittable, shard
from pl_prefopt.policies.sketch import sketch_frozen, sketch_policy, sketch_second_adapter
from pl_prefopt.policies.spec import FourBit, PolicySpec, refuse_pickled_adapter

__all__ = [
    "FourBit",
    "PolicySpec",
    "build_frozen",
    "build_policy",
    "check_shardable",
    "check_sizes",
    "check_splittable",
    "refuse_pickled_adapter",
    "shard",
    "sketch_frozen",
    "sketch_policy",
    "sketch_second_adapter",
]

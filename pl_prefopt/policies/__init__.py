"""The model that is trained: how it is described, loaded and adapted."""

from pl_prefopt.policies.build import build_frozen, build_policy
from pl_prefopt.policies.sharding import check_shardable, check_sizes, check_splittable, layers_of
from pl_prefopt.policies.sketch import sketch_frozen, sketch_policy, sketch_second_adapter
from pl_prefopt.policies.spec import FourBit, PolicySpec, refuse_pickled_adapter
from pl_prefopt.policies.split_loading import Make, load_split

__all__ = [
    "FourBit",
    "Make",
    "PolicySpec",
    "build_frozen",
    "build_policy",
    "check_shardable",
    "check_sizes",
    "check_splittable",
    "layers_of",
    "load_split",
    "refuse_pickled_adapter",
    "sketch_frozen",
    "sketch_policy",
    "sketch_second_adapter",
]

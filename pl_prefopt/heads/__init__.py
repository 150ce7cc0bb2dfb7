"""Reward heads: from the hidden states at the ends of prompts and responses to rewards."""

from pl_prefopt.heads.base import Head, StatePairs
from pl_prefopt.heads.embedding import EmbeddingHead
from pl_prefopt.heads.features import AttributeHead, FeatureHead
from pl_prefopt.heads.mixture import MixtureHead
from pl_prefopt.heads.scalar import ScalarHead
from pl_prefopt.heads.user_heads import DirectionHead, GroupHead, IdealPointHead, UserHead
from pl_prefopt.heads.users import Users

__all__ = [
    "AttributeHead",
    "DirectionHead",
    "EmbeddingHead",
    "FeatureHead",
    "GroupHead",
    "Head",
    "IdealPointHead",
    "MixtureHead",
    "ScalarHead",
    "StatePairs",
    "UserHead",
    "Users",
]

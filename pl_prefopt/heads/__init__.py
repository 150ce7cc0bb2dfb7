"""Reward heads: from the hidden states at the ends of prompts and responses to rewards."""

from pl_prefopt.heads.base import Head
from pl_prefopt.heads.scalar import ScalarHead

__all__ = ["Head", "ScalarHead"]

"""Scoring: from token trees to log-probs of responses, per-token values and outputs of heads.

Only this package builds a model's inputs.
"""

from pl_prefopt.scoring.inputs import at_least_float32, base_model, evaluating
from pl_prefopt.scoring.prefix_cache import PrefixCache, can_share_prompt
from pl_prefopt.scoring.readouts import (
    Collisions,
    DivergingLogProbs,
    EndStates,
    HiddenStates,
    LogProbs,
    Outputs,
    Readout,
    TokenStates,
    Vocabulary,
    divergence,
)
from pl_prefopt.scoring.routers import check_has_routers
from pl_prefopt.scoring.scorer import HeadName, LayoutName, Scorer, check_length, summed, unknown_log_probs

__all__ = [
    "Collisions",
    "DivergingLogProbs",
    "EndStates",
    "HeadName",
    "HiddenStates",
    "LayoutName",
    "LogProbs",
    "Outputs",
    "PrefixCache",
    "Readout",
    "Scorer",
    "TokenStates",
    "Vocabulary",
    "at_least_float32",
    "base_model",
    "can_share_prompt",
    "check_has_routers",
    "check_length",
    "divergence",
    "evaluating",
    "summed",
    "unknown_log_probs",
]

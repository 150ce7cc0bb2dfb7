"""Turning token trees into log-probs of responses: the only place that knows a model's inputs."""

from pl_prefopt.scoring.history import History
from pl_prefopt.scoring.inputs import evaluating
from pl_prefopt.scoring.scorer import HeadName, LayoutName, Scorer, check_length

__all__ = ["HeadName", "History", "LayoutName", "Scorer", "check_length", "evaluating"]

"""Turning token trees into log-probs of responses: the only place that knows a model's inputs."""

from pl_prefopt.scoring.scorer import LayoutName, Scorer, evaluating

__all__ = ["LayoutName", "Scorer", "evaluating"]

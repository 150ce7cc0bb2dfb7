"""Metrics over single responses."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

from pl_prefopt.metrics.states import Correlation, Mean
from pl_prefopt.types import ResponseLogProbs


class SequenceKL(Mean):
    """The mean over responses of log π_θ(y|x) − log π_k(y|x), for one reference k.

    It estimates the Kullback-Leibler divergence KL(π_θ ‖ π_k) only as far as the responses resemble the
    policy's own samples; on preference data, which someone else wrote, it may be negative.

    Args:
        reference: k, the reference's place in the configured list.
    """

    def __init__(self, *, reference: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference

    def update(self, policy: ResponseLogProbs, references: Tensor, present: Tensor) -> None:
        """Count a batch: ``policy`` of [B, R], ``references`` [K, B, R], ``present`` [B, R]."""
        self.add(policy.sum.float() - references[self.reference].float(), present)


class LengthBias(Correlation):
    """Pearson's correlation of reward and response length over all responses.

    Far above 0 the rewards have learned "longer is better", far below 0 the opposite.
    """

    def update(self, reward: Tensor, policy: ResponseLogProbs, present: Tensor) -> None:
        """Count a batch: ``reward`` [B, R], ``policy`` of [B, R], ``present`` [B, R]."""
        self.add(reward, policy.length, present)

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Pearson's r."""
        return pearson_corrcoef(first, second)

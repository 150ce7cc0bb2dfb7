"""Metrics over single responses."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

from pl_prefopt.metrics.pairs import log_ratio
from pl_prefopt.metrics.states import Correlation, Mean, all_present
from pl_prefopt.types import ResponseLogProbs


class MeanLogRatio(Mean):
    """The mean over responses of log π_θ(y|x) − log π_k(y|x), for one reference k.

    It estimates the Kullback-Leibler divergence KL(π_θ ‖ π_k) only as far as the responses resemble the
    policy's own samples; on preference data, which someone else wrote, it may be negative.

    Args:
        reference: k, the reference's place in the configured list.

    Examples:
        Log-ratios 2 and 0.5:

        >>> import torch
        >>> metric = MeanLogRatio(reference=0)
        >>> policy = ResponseLogProbs(sum=torch.tensor([[-3.0, -4.0]]), length=torch.tensor([[2, 2]]))
        >>> metric.update(policy, references=torch.tensor([[[-5.0, -4.5]]]))
        >>> metric.compute()
        tensor(1.2500)
    """

    def __init__(self, *, reference: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference

    def update(self, policy: ResponseLogProbs, references: Tensor, present: Tensor | None = None) -> None:
        """Count a batch: ``policy`` of [B, R], ``references`` [K, B, R], ``present`` [B, R]."""
        ratio = log_ratio(policy, references[self.reference])
        self.add(ratio, all_present(ratio, present))


class LengthBias(Correlation):
    """Pearson's correlation of reward and response length over all responses.

    Far above 0 the rewards have learned "longer is better", far below 0 the opposite.

    Examples:
        >>> import torch
        >>> metric = LengthBias()
        >>> policy = ResponseLogProbs(sum=torch.zeros(1, 3), length=torch.tensor([[2, 4, 6]]))
        >>> metric.update(torch.tensor([[1.0, 2.0, 3.0]]), policy)
        >>> metric.compute()
        tensor(1.)
    """

    def update(self, reward: Tensor, policy: ResponseLogProbs, present: Tensor | None = None) -> None:
        """Count a batch: ``reward`` [B, R], ``policy`` of [B, R], ``present`` [B, R]."""
        self.add(reward, policy.length, all_present(reward, present))

    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return Pearson's r."""
        return pearson_corrcoef(first, second)

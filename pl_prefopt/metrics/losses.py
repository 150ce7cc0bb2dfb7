"""The loss of an epoch."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt.metrics.states import Mean


class LossMean(Mean):
    """The mean loss over prompts that count, those with something to compare.

    Examples:
        >>> import torch
        >>> metric = LossMean()
        >>> metric.update(torch.tensor([0.5, 0.7, 0.0]), torch.tensor([True, True, False]))
        >>> metric.compute()
        tensor(0.6000)
    """

    def update(self, loss: Tensor, counted: Tensor) -> None:
        """Count ``loss`` [B] where ``counted`` [B] is true."""
        self.add(loss.detach(), counted)

"""A callback that holds each optimiser step to the mean over its prompts."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from pl_prefopt.data import PreferenceDataset


class MeanGradients(Callback):
    """Compares each step's gradient with that of one batch of all its prompts, before it is clipped.

    Args:
        rows: the training rows; the data module's by default.

    Attributes:
        prompts: the row numbers of each step, by rank.
        worst: of each step, the greatest difference from that gradient, as a part of its greatest entry.
    """

    def __init__(self, rows: PreferenceDataset | None = None) -> None:
        self._rows = rows
        self.prompts: list[list[list[int]]] = []
        self.worst: list[float] = []
        self._window: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._window += batch.index[batch.present.any(dim=-1)].tolist()

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        ranks: list[list[int]] = [self._window]
        if dist.is_initialized():
            ranks = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(ranks, self._window)
        self._window = []
        self.prompts.append(ranks)
        weights = [weight for weight in module.parameters() if weight.grad is not None]
        kept = [weight.grad for weight in weights]
        module.zero_grad(set_to_none=True)
        rows = self._rows or trainer.datamodule.datasets["train"]
        batch = rows.batch([number for rank in ranks for number in rank])
        module.objective(module.score(batch)).loss.mean().backward()
        # The largest over all weights: what a single weight has next to nothing of is rounding.
        size = max(_whole(weight.grad).abs().max().item() for weight in weights)
        apart = [
            (_whole(grad) - _whole(weight.grad)).abs().max()
            for weight, grad in zip(weights, kept, strict=True)
        ]
        self.worst.append(max(apart).item() / (size or 1.0))
        for weight, grad in zip(weights, kept, strict=True):
            weight.grad = grad


def _whole(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient

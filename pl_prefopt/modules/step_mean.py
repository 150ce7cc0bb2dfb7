"""Scaling the gradient of an optimiser step to the mean over its prompts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pl_prefopt.types import PreferenceBatch


class StepMean:
    """Scales the gradient of every optimiser step to the mean over its prompts, across batches and ranks.

    Lightning divides each batch's loss by ``accumulate_grad_batches``, and the strategy averages gradients
    over ranks, as if all batches had the same number of prompts and all windows of accumulated batches were
    complete. The last window of an epoch often isn't, batches under a token limit differ in size, and one
    rank may have more prompts than another. The number of prompts in a window is known at its end only, since
    any data loader may be used, and a run may stop or resume anywhere. So the sum of each batch's losses is
    divided by a constant, and the gradient of the window is scaled once, by the ratio of that constant times
    the number of batches of a complete window to the actual number of prompts. For complete windows of full
    batches the ratio is 1.

    The counts remain on the device, so that the CPU never waits for a GPU.
    """

    def __init__(self) -> None:
        self._prompts_per_batch: float | None = None
        self._prompts: Tensor | None = None

    def start(self, prompts_per_batch: float | None) -> None:
        """Start a run.

        Args:
            prompts_per_batch: the usual number of training prompts per batch and device, the same on all
                ranks; ``None`` to use that of rank 0's first batch.
        """
        self._prompts_per_batch, self._prompts = prompts_per_batch, None

    def share(self, loss: Tensor, batch: PreferenceBatch, trainer: Trainer) -> Tensor:
        """Return a batch's share of its step's loss, before ``scale``.

        Args:
            loss: [B], one loss per prompt; 0 for rows that only pad a rank's last batch.
            batch: the training batch.
            trainer: the trainer.
        """
        if self._prompts_per_batch is None:
            self._prompts_per_batch = float(trainer.strategy.broadcast(len(batch)))
        here = batch.present.any(dim=-1).sum()
        self._prompts = here if self._prompts is None else self._prompts + here
        return loss.sum() / self._prompts_per_batch

    @torch.no_grad()
    def scale(self, weights: Iterable[nn.Parameter], trainer: Trainer) -> None:
        """Scale the gradients of a finished window, averaged over ranks, to the mean over its prompts."""
        assert self._prompts is not None
        assert self._prompts_per_batch is not None
        prompts, self._prompts, ranks = self._prompts.float(), None, 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(prompts)
            ranks = dist.get_world_size()
        factor = self._prompts_per_batch * trainer.accumulate_grad_batches * ranks / prompts.clamp(min=1)
        for weight in weights:
            if weight.grad is not None:
                gradient = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
                gradient.mul_(factor.to(gradient.device))

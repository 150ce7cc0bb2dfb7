"""The gradient of an optimiser step as the mean over all prompts that it saw."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pl_prefopt.types import PreferenceBatch


class StepMean:
    """Makes every optimiser step the mean over its prompts, whatever batches and ranks they fall into.

    Lightning divides each batch's loss by ``accumulate_grad_batches``, and the strategy averages gradients
    over ranks, as if all batches had the same number of prompts and all windows of accumulated batches were
    complete. The last window of an epoch often isn't, batches that a limit of tokens cuts differ in size, and
    one rank may have more prompts than another. How many prompts a window has is known at its end only: a
    loader may be of any kind, and a run may stop or resume anywhere. So the sum of each batch's losses is
    divided by a constant, and the gradient of the window is scaled once, by the ratio of that constant times
    the batches of a whole window to the prompts that there were. For whole windows of whole batches it is 1.

    The counts stay on the device: the host waits for nothing.
    """

    def __init__(self) -> None:
        self._prompts_per_batch: float | None = None
        self._prompts: Tensor | None = None

    def start(self, prompts_per_batch: float | None) -> None:
        """Begin a run.

        Args:
            prompts_per_batch: training prompts per batch and device as a rule, the same number on all ranks;
                ``None`` for those of rank 0's first batch.
        """
        self._prompts_per_batch, self._prompts = prompts_per_batch, None

    def share(self, loss: Tensor, batch: PreferenceBatch, trainer: Trainer) -> Tensor:
        """Return the part of a batch in its step's loss, before ``scale``.

        Args:
            loss: [B], one loss per prompt; rows that only even out the ranks have 0.
            batch: the training batch.
            trainer: who trains.
        """
        if self._prompts_per_batch is None:
            self._prompts_per_batch = float(trainer.strategy.broadcast(len(batch)))
        here = batch.present.any(dim=-1).sum()
        self._prompts = here if self._prompts is None else self._prompts + here
        return loss.sum() / self._prompts_per_batch

    @torch.no_grad()
    def scale(self, weights: Iterable[nn.Parameter], trainer: Trainer) -> None:
        """Turn the gradients of a finished window, averaged over ranks, into the mean over its prompts."""
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

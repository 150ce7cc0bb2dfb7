"""The learning rate's course."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pl_prefopt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule of transformers, in optimiser steps.

    Attributes:
        name: ``constant_with_warmup``, ``linear``, ``cosine``, or another of ``transformers.get_scheduler``.
        warmup: steps of linear warm-up; below 1, a share of all steps.
        settings: what the schedule takes beyond that, such as ``min_lr_rate``.
    """

    name: str = "constant_with_warmup"
    warmup: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, optimizer: Optimizer, steps: float) -> LRScheduler:
        """Return the schedule over ``steps`` optimiser steps, which may be infinitely many.

        Raises:
            ConfigError: if transformers knows no schedule of this name, the warm-up is negative, or the
                schedule depends on the length of a run that has none.
        """
        if self.warmup < 0:
            raise ConfigError(f"expected `schedule.warmup` to be at least 0, got {self.warmup}; set another")
        from transformers import SchedulerType, get_scheduler

        if self.name not in set(SchedulerType):
            known = ", ".join(kind.value for kind in SchedulerType)
            raise ConfigError(f"Expected schedule.name to be one of {known}; got '{self.name}'.")
        if math.isinf(steps):
            if self.warmup % 1 or self.name not in ("constant", "constant_with_warmup"):
                raise ConfigError(
                    f"The schedule '{self.name}' with warmup {self.warmup} depends on the number of steps, "
                    "which trainer.max_epochs -1 leaves open: set trainer.max_steps or trainer.max_epochs, "
                    "or schedule.name constant_with_warmup and a whole number of steps in schedule.warmup."
                )
            steps = 0  # which these schedules don't look at
        warmup = int(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        scheduler: LRScheduler = get_scheduler(
            self.name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=int(steps),
            scheduler_specific_kwargs=self.settings or None,
        )
        return scheduler


def optimizer_steps(trainer: Any) -> float:
    """Return the optimiser steps of a whole run, infinity for one without a limit in steps or epochs.

    Lightning takes the first epoch's accumulation for all of them.
    """
    estimated = float(trainer.estimated_stepping_batches)
    changes = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]
    if not changes or math.isinf(estimated) or trainer.max_epochs in (None, -1):
        return estimated
    batches = trainer.num_training_batches
    of_epochs = [
        math.ceil(batches / changes[0].get_accumulate_grad_batches(epoch))
        for epoch in range(int(trainer.max_epochs or 0))
    ]
    most = math.inf if trainer.max_steps == -1 else float(trainer.max_steps)
    return min(float(sum(of_epochs)), most)

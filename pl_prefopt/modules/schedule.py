"""The learning rate's course."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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

    def build(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the schedule over ``steps`` optimiser steps.

        Raises:
            ConfigError: if transformers knows no schedule of this name, or the warm-up is negative.
        """
        if self.warmup < 0:
            raise ConfigError(f"expected `schedule.warmup` to be at least 0, got {self.warmup}; set another")
        from transformers import SchedulerType, get_scheduler

        if self.name not in set(SchedulerType):
            known = ", ".join(kind.value for kind in SchedulerType)
            raise ConfigError(f"Expected schedule.name to be one of {known}; got '{self.name}'.")
        warmup = int(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        scheduler: LRScheduler = get_scheduler(
            self.name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=self.settings or None,
        )
        return scheduler

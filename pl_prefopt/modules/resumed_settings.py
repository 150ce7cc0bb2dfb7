"""Settings of resumed runs: the configuration's, in place of those in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pl_prefopt.modules.learning_rate import BASE_RATE
from pl_prefopt.objectives import Objective
from pl_prefopt.objectives.base import plain_settings

Settings = list[dict[str, Any]]

_OPTIMIZER = "pl_prefopt_optimizer"
_OBJECTIVE = "pl_prefopt_objective"


def settings_of(optimizer: Optimizer) -> Settings:
    """Return each group's settings but the current learning rate, which is the schedule's."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def save_settings(checkpoint: dict[str, Any], settings: Settings) -> None:
    """Save ``settings_of`` the optimiser before its first step."""
    checkpoint[_OPTIMIZER] = settings


def saved_settings(checkpoint: Mapping[str, Any]) -> Settings:
    """Return what ``save_settings`` saved; an empty list for a checkpoint of an earlier version."""
    settings: Settings = checkpoint.get(_OPTIMIZER, [])
    return settings


def keep_settings(optimizer: Optimizer, scheduler: LRScheduler, wanted: Settings, saved: Settings) -> None:
    """Apply the configuration's settings to an optimiser that was loaded from a checkpoint.

    torch loads settings from the checkpoint along with the moments, so that a lower learning rate, which a
    diverged run needs, would silently be ignored. Settings that the configuration didn't change remain the
    checkpoint's: some optimisers keep counters among their settings.

    Args:
        optimizer: as loaded from the checkpoint.
        scheduler: as loaded from the checkpoint.
        wanted: ``settings_of`` the optimiser before it was loaded.
        saved: ``saved_settings`` of the checkpoint.
    """
    saved, steps_move = saved or settings_of(optimizer), False
    for number, (group, old, new) in enumerate(zip(optimizer.param_groups, saved, wanted, strict=True)):
        for key, value in new.items():
            had = old.get(key, value)
            if had == value:
                continue
            now, group[key] = group.get(key, had), value
            steps_move |= key in ("fused", "capturable")
            if key == BASE_RATE:
                group["lr"] *= value / now if now else 0.0
                scheduler.base_lrs[number] = value
            name = "lr" if key == BASE_RATE else key
            rank_zero_warn(f"From here on the optimiser's {name} is {value}; the checkpoint's was {now}.")
    if steps_move:  # torch puts counts of steps where its kernels expect them when it loads them
        optimizer.load_state_dict(optimizer.state_dict())


def save_objective(checkpoint: dict[str, Any], objective: Objective) -> None:
    """Save the objective's plain settings, such as its β."""
    checkpoint[_OBJECTIVE] = plain_settings(objective)


def compare_objective(checkpoint: Mapping[str, Any], objective: Objective) -> None:
    """Warn of each setting that differs from what ``save_objective`` saved."""
    had = checkpoint.get(_OBJECTIVE, {})
    for name, value in plain_settings(objective).items():
        if had.get(name, value) != value:
            rank_zero_warn(
                f"From here on the objective's {name} is {value}; the checkpoint's was {had[name]}."
            )

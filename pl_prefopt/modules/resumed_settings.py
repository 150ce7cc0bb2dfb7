"""Settings where a run goes on: this run's, not those that the checkpoint was made with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pl_prefopt.objectives import Objective

Settings = list[dict[str, Any]]

_START = "initial_lr"  # torch's name for what the schedule scales
_OPTIMIZER = "pl_prefopt_optimizer"
_OBJECTIVE = "pl_prefopt_objective"


def settings_of(optimizer: Optimizer) -> Settings:
    """Return each group's settings but the current learning rate, which is the schedule's."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def save_settings(checkpoint: dict[str, Any], settings: Settings) -> None:
    """Note ``settings_of`` the optimiser before its first step."""
    checkpoint[_OPTIMIZER] = settings


def saved_settings(checkpoint: Mapping[str, Any]) -> Settings:
    """Return what ``save_settings`` noted; nothing in a checkpoint of an earlier version."""
    settings: Settings = checkpoint.get(_OPTIMIZER, [])
    return settings


def keep_settings(optimizer: Optimizer, scheduler: LRScheduler, wanted: Settings, saved: Settings) -> None:
    """Give an optimiser that a checkpoint was read into the settings that the configuration asks for.

    torch reads them from the checkpoint along with the moments, so that a lower learning rate, which is what
    a run that went astray needs, would be passed over without a word. What the configuration left as it was
    stays the checkpoint's: some optimisers count among their settings.

    Args:
        optimizer: as the checkpoint left it.
        scheduler: likewise.
        wanted: ``settings_of`` the optimiser before.
        saved: ``saved_settings`` of the checkpoint.
    """
    saved = saved or settings_of(optimizer)
    for number, (group, old, new) in enumerate(zip(optimizer.param_groups, saved, wanted, strict=True)):
        for key, value in new.items():
            had = old.get(key, value)
            if had == value:
                continue
            group[key] = value
            if key == _START:
                group["lr"] *= value / had if had else 0.0
                scheduler.base_lrs[number] = value
            name = "lr" if key == _START else key
            rank_zero_warn(f"From here on the optimiser's {name} is {value}; the checkpoint's was {had}.")


def save_objective(checkpoint: dict[str, Any], objective: Objective) -> None:
    """Note the objective's plain settings, such as its β."""
    checkpoint[_OBJECTIVE] = _plain(objective)


def compare_objective(checkpoint: Mapping[str, Any], objective: Objective) -> None:
    """Warn of each setting that ``save_objective`` noted otherwise."""
    had = checkpoint.get(_OBJECTIVE, {})
    for name, value in _plain(objective).items():
        if had.get(name, value) != value:
            rank_zero_warn(
                f"From here on the objective's {name} is {value}; the checkpoint's was {had[name]}."
            )


def _plain(objective: Objective) -> dict[str, Any]:
    """Return the arguments that the objective was built with: plain ones as they are, parts as text."""
    names = inspect.signature(type(objective)).parameters
    values = {name: getattr(objective, name) for name in names if hasattr(objective, name)}
    plain = bool | int | float | str | None
    return {name: value if isinstance(value, plain) else repr(value) for name, value in values.items()}

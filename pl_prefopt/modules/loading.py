"""Modules built from a run's ``config.yaml``, to load a checkpoint without a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import OptimizerCallable

from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.metrics import PreferenceMetric
from pl_prefopt.modules.schedule import Schedule
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.saved_settings import FILE_NAME, read_saved
from pl_prefopt.scoring import HeadName, LayoutName

_TYPES: dict[str, Any] = {
    "policy": PolicySpec,
    "objective": Objective,
    "layout": LayoutName,
    "head": HeadName,
    "token_rewards": bool,
    "router_aux_loss_coef": float | None,
    "optimizer": OptimizerCallable,  # whose return type restricts it to optimisers
    "schedule": Schedule,
    "metrics": list[PreferenceMetric],
}


def arguments_of(checkpoint: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the module that made a checkpoint, from its run's ``config.yaml``.

    Args:
        checkpoint: the checkpoint of a run, in its ``checkpoints`` folder.
        given: arguments that replace those of the run.

    Raises:
        ConfigError: if there is no such file, or it can't be read.
    """
    config = checkpoint.resolve().parent.parent / FILE_NAME
    if not config.is_file():
        if {"policy", "objective"} <= given.keys():
            return dict(given)
        raise ConfigError(
            f"There is no {FILE_NAME} of a run next to the folder of {checkpoint}: pass the module's "
            "arguments, load_from_checkpoint(path, policy=PolicySpec(...), objective=...)."
        )
    try:
        saved = read_saved(config)["model"]["init_args"]
        wanted = {name: saved[name] for name in _TYPES if name in saved and name not in given}
        parser = ArgumentParser(exit_on_error=False)
        for name in wanted:
            parser.add_argument(f"--{name}", type=_TYPES[name])
        built = parser.instantiate_classes(parser.parse_object(wanted))
    except Exception as error:  # a class of the user's own can raise anything
        raise ConfigError(f"{config} can't be read: {first_line(error)}.") from error
    return {name: built[name] for name in wanted} | dict(given)

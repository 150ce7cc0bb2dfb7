"""Checks and adaptations of Lightning's own callbacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo, current_name, monitor_mistake
from pl_prefopt.modules.averaging import TrainedWeightsAveraging
from pl_prefopt.modules.learning_rate import RememberedLearningRate

REFUSED: dict[type[Callback], str] = {
    BaseFinetuning: (
        "freezes and unfreezes weights during training, which references share and checkpoints leave out: "
        "choose what is trained by model.init_args.policy.lora"
    ),
    BatchSizeFinder: (
        "tries a few batches, but memory depends on the longest rows: run `prefopt plan` with the same "
        "settings, and set data.batch_size or data.max_tokens_per_batch"
    ),
    ModelPruning: (
        "prunes weights that references share and checkpoints leave out: prune what `prefopt export` writes"
    ),
    SpikeDetection: (
        "can't read its own state when a run is resumed: a non-finite loss stops a run by itself, and "
        "lightning.pytorch.callbacks.EarlyStopping has a divergence_threshold"
    ),
    StochasticWeightAveraging: (
        "copies the module before its model is loaded, and so averages nothing: use "
        "lightning.pytorch.callbacks.WeightAveraging or EMAWeightAveraging"
    ),
}
"""Callbacks that are refused, with the reason and what to use instead."""

_ADAPTED: dict[type[Callback], type[Callback]] = {
    LearningRateFinder: RememberedLearningRate,
    WeightAveraging: TrainedWeightsAveraging,
}
_SHARDING = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


def fit_in(trainer: Any) -> None:
    """Refuse incompatible callbacks of the trainer, and adapt those that need it.

    Adapted callbacks remain the same objects, since the caller may have references to them: their class
    becomes a subclass of the original one. They run after all others but checkpoints.

    Raises:
        ConfigError: saying what to use instead.
    """
    for callback in trainer.callbacks:
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind):
                raise ConfigError(f"Remove {type(callback).__name__} from trainer.callbacks. It {reason}.")
        for kind, adapted in _ADAPTED.items():
            if isinstance(callback, kind) and not isinstance(callback, adapted):
                _refuse_sharding(trainer, callback)
                own = type(callback)
                callback.__class__ = type(own.__name__, (adapted, own), {"__qualname__": own.__qualname__})
    trainer.callbacks.sort(key=_place)


def rename_monitors(checkpoint: dict[str, Any]) -> None:
    """Give callbacks' states in a checkpoint of an earlier version the current names of monitored metrics.

    Lightning looks a state up by the callback's class and monitor. Without its state, a best checkpoint would
    be overwritten by the first validation, however bad.
    """
    states = checkpoint.get("callbacks") or {}
    checkpoint["callbacks"] = {_renamed(key): state for key, state in states.items()}


def _renamed(key: Any) -> Any:
    if not isinstance(key, str):  # a class, in files of Lightning before 1.5
        return key
    return re.sub(r"(?<='monitor': ')[^']+(?=')", lambda found: current_name(found[0]), key)


def check_monitors(trainer: Any, infos: Sequence[MetricInfo]) -> None:
    """Refuse callbacks that monitor a metric by a former name, or with the wrong mode.

    Raises:
        ConfigError: saying what to set instead.
    """
    for callback in trainer.callbacks:
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if isinstance(monitor, str):
            mistake = monitor_mistake(monitor, mode, infos)
            if mistake is not None:
                raise ConfigError(f"{type(callback).__name__}.monitor: {mistake}")


def _place(callback: Callback) -> int:
    """Return 1 for averages, 2 for checkpoints, which come after that, and 0 for all others."""
    return 2 if isinstance(callback, Checkpoint) else int(isinstance(callback, WeightAveraging))


def _refuse_sharding(trainer: Any, callback: Callback) -> None:
    if isinstance(trainer.strategy, _SHARDING):
        raise ConfigError(
            f"{type(callback).__name__} in trainer.callbacks needs whole weights, and "
            f"{type(trainer.strategy).__name__} shards them: use it with one device or trainer.strategy ddp."
        )

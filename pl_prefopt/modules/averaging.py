"""Lightning's weight averaging, restricted to trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules.checkpoints import trained_weights

CURRENT, _AVERAGING = "current_model_state", "averaging_state"  # Lightning's names


class _Weights(nn.Module):
    """Weights as a module, since torch averages modules."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)


class _Average(AveragedModel):
    """The average of a module's trained weights, in float32 or better.

    In a lower precision, updates with a decay of 0.999 would be rounded away.
    """

    def __init__(self, module: Any, device: torch.device, **settings: Any) -> None:
        copies = [
            weight.detach().to(device, torch.promote_types(weight.dtype, torch.float32), copy=True)
            for weight in module.trained_values().values()
        ]
        super().__init__(_Weights(copies), device=device, use_buffers=False, **settings)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The averages, in the order of ``trained_weights``."""
        weights: Any = self.module.weights
        return list(weights)

    def update_parameters(self, model: Any) -> None:
        """Update the average with the trained weights of ``model``."""
        pairs = zip(model.trained_values().values(), self.weights, strict=True)
        super().update_parameters(_Weights(now.detach().to(average.dtype) for now, average in pairs))


class TrainedWeightsAveraging(WeightAveraging):
    """Averages the trained weights; takes the place of a ``WeightAveraging`` in a run.

    Lightning's own averages all of the module's weights. With an adapter that means a second copy of the base
    model, which each average rounds slightly away from the base that references and exports use, and
    checkpoints from which a run can't be resumed.

    Validations use the averages, checkpoints hold them as the policy's weights, and the module has them after
    training; checkpoints also hold the weights being trained, for resumed runs. Before the first average, the
    weights being trained are used everywhere.
    """

    _average_model: _Average | None
    _current: list[Tensor] | None = None  # the weights being trained, while the module has the averages

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the averages."""
        self._average_model = self._current = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the current weights, unless averages were loaded from a checkpoint."""
        if self._average_model is None:
            self._average_model = _Average(
                pl_module, torch.device(self._device or trainer.strategy.root_device), **self._kwargs
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in the averages for a validation."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._use_averages(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing, so that callbacks see the averages after a validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the weights being trained."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._use_current(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module."""
        self._use_averages(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the weights being trained."""
        self._use_current(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averages as the policy's weights, and the weights being trained separately."""
        average = self._average_model
        if average is None or not average.n_averaged:
            return
        saved = checkpoint["state_dict"]
        names = list(trained_weights(pl_module))
        current = [saved[name] for name in names] if self._current is None else self._current
        checkpoint[CURRENT] = dict(zip(names, current, strict=True))
        checkpoint["state_dict"] = saved | {
            name: weight.detach() for name, weight in zip(names, average.weights, strict=True)
        }
        checkpoint[_AVERAGING] = {"n_averaged": average.n_averaged}

    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the averages, and the weights being trained."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._average_model = None
        self.on_fit_start(trainer, pl_module)
        assert self._average_model is not None
        if _AVERAGING not in checkpoint:
            return
        current = trained_weights(pl_module)
        for (name, weight), average in zip(current.items(), self._average_model.weights, strict=True):
            average.copy_(checkpoint["state_dict"][name])
            weight.copy_(checkpoint[CURRENT][name])
        self._average_model.n_averaged.copy_(checkpoint[_AVERAGING]["n_averaged"])

    @torch.no_grad()
    def _use_averages(self, module: LightningModule) -> None:
        average = self._average_model
        if average is None or not average.n_averaged or self._current is not None:
            return
        own: Any = module
        values = own.trained_values().values()
        self._current = [
            value.detach().to(mean.device, copy=True)
            for value, mean in zip(values, average.weights, strict=True)
        ]
        for weight, mean in zip(trained_weights(module).values(), average.weights, strict=True):
            weight.copy_(mean)

    @torch.no_grad()
    def _use_current(self, module: LightningModule) -> None:
        for weight, kept in zip(trained_weights(module).values(), self._current or (), strict=False):
            weight.copy_(kept)
        self._current = None


def require_averaging(checkpoint: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Raise a ``ConfigError`` if ``checkpoint`` holds averages and no callback loads them.

    Args:
        checkpoint: the checkpoint of a run to resume.
        callbacks: the trainer's callbacks.
    """
    if _AVERAGING in checkpoint and not any(isinstance(one, WeightAveraging) for one in callbacks):
        raise ConfigError(
            "The checkpoint holds averaged weights, not the weights being trained: resume it with its run's "
            "WeightAveraging or EMAWeightAveraging in trainer.callbacks, or start a new run from the model "
            "that `prefopt export` writes."
        )

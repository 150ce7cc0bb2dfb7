"""Lightning's weight averaging, of the trained weights and nothing else."""

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

_CURRENT, _AVERAGING = "current_model_state", "averaging_state"  # Lightning's names


class _Weights(nn.Module):
    """Some weights as a module, which is what torch averages."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)


class _Average(AveragedModel):
    """The average of a module's trained weights, kept in float32 at least.

    In a narrower type a decay of 0.999 would be rounded away.
    """

    def __init__(self, module: nn.Module, device: torch.device, **settings: Any) -> None:
        copies = [
            weight.detach().to(device, torch.promote_types(weight.dtype, torch.float32), copy=True)
            for weight in trained_weights(module).values()
        ]
        super().__init__(_Weights(copies), device=device, use_buffers=False, **settings)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The averages, in the order of ``trained_weights``."""
        weights: Any = self.module.weights
        return list(weights)

    def update_parameters(self, model: nn.Module) -> None:
        """Count the trained weights of ``model``."""
        pairs = zip(trained_weights(model).values(), self.weights, strict=True)
        super().update_parameters(_Weights(now.detach().to(average.dtype) for now, average in pairs))


class TrainedWeightsAveraging(WeightAveraging):
    """What a ``WeightAveraging`` becomes in a run: it averages what is trained.

    Lightning's own averages all that the module has. With an adapter that is a second copy of the base model,
    which every average rounds a little away from the one that references and exports use, and a checkpoint
    of which a run can't be resumed.

    The averages are what is validated, what checkpoints hold as the policy's weights, and what the module has
    after training; the weights being trained are kept beside them, for a run that resumes. Before the first
    average, the weights being trained are used everywhere.
    """

    _average_model: _Average | None
    _current: list[Tensor] | None = None  # the weights being trained, while the module has the averages

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew."""
        self._average_model = self._current = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint brought averages."""
        if self._average_model is None:
            self._average_model = _Average(
                pl_module, torch.device(self._device or trainer.strategy.root_device), **self._kwargs
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averages."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._use_averages(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in place for callbacks that look at the policy after a validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights being trained."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._use_current(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module."""
        self._use_averages(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the weights being trained, wherever it happened."""
        self._use_current(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averages as the policy's weights, and those being trained beside them."""
        average = self._average_model
        if average is None or not average.n_averaged:
            return
        saved = checkpoint["state_dict"]
        names = list(trained_weights(pl_module))
        current = [saved[name] for name in names] if self._current is None else self._current
        checkpoint[_CURRENT] = dict(zip(names, current, strict=True))
        checkpoint["state_dict"] = saved | {
            name: weight.detach() for name, weight in zip(names, average.weights, strict=True)
        }
        checkpoint[_AVERAGING] = {"n_averaged": average.n_averaged}

    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the averages, and train on from the weights beside them."""
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
            weight.copy_(checkpoint[_CURRENT][name])
        self._average_model.n_averaged.copy_(checkpoint[_AVERAGING]["n_averaged"])

    @torch.no_grad()
    def _use_averages(self, module: LightningModule) -> None:
        average = self._average_model
        if average is None or not average.n_averaged or self._current is not None:
            return
        pairs = list(zip(trained_weights(module).values(), average.weights, strict=True))
        self._current = [weight.detach().to(mean.device, copy=True) for weight, mean in pairs]
        for weight, mean in pairs:
            weight.copy_(mean)

    @torch.no_grad()
    def _use_current(self, module: LightningModule) -> None:
        for weight, kept in zip(trained_weights(module).values(), self._current or (), strict=False):
            weight.copy_(kept)
        self._current = None


def require_averaging(checkpoint: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Raise a ``ConfigError`` if ``checkpoint`` holds averages and no callback takes them for such.

    Args:
        checkpoint: of a run that is to be resumed.
        callbacks: the trainer's.
    """
    if _AVERAGING in checkpoint and not any(isinstance(one, WeightAveraging) for one in callbacks):
        raise ConfigError(
            "The checkpoint holds averaged weights, which are not those that its run was training: resume it "
            "with the WeightAveraging or EMAWeightAveraging that it had in trainer.callbacks, or start a new "
            "run from what `prefopt export` makes of it."
        )

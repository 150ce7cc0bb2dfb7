"""Training throughput."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from pl_prefopt.callbacks.model_flops import ModelFlops, peak_flops
from pl_prefopt.callbacks.reference_ensemble import ReferenceEnsemble
from pl_prefopt.checks import positive
from pl_prefopt.policies import PolicySpec, sketch_frozen
from pl_prefopt.types import PLAIN, PreferenceBatch

MFU = "train/mfu"
TOKENS_PER_SECOND = "train/tokens_per_second"


class Throughput(Callback):
    """Logs ``train/tokens_per_second`` and ``train/mfu`` over the steps since the last time.

    Tokens are those of the rows trained on. A prompt counts once, padding and second views don't count, and
    ranks are summed. MFU, model FLOPs utilisation, is the share of the devices' peak that the operations of
    these steps take, see ``ModelFlops``; it is left out where the peak or the operations aren't known.

    The time excludes validation only. No step waits for the device: batches keep their lengths on the CPU,
    and the clock is read only where the training metrics are logged and around a validation (Lightning's
    ``ThroughputMonitor`` waits for the GPU at every step).

    Args:
        peak_tflops: the device's peak in TFLOP/s, for devices that aren't known; by default that of the
            vendor's data sheet for bfloat16.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = None if peak_tflops is None else positive("peak_tflops", peak_tflops)
        self._tokens = 0
        self._flops = 0.0
        self._seconds = 0.0
        self._since = 0.0
        self._logged_at = 0
        self._step: _StepFlops | None = None
        self._peak: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._logged_at = trainer.global_step
        self._peak = (
            peak_flops(pl_module.device, str(trainer.precision))
            if self.peak_tflops is None
            else 1e12 * self.peak_tflops
        )
        self._step = None if self._peak is None else _StepFlops.of(trainer, pl_module)
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log at the steps at which training metrics are logged."""
        tree = batch.trees[PLAIN]
        self._tokens += sum(tree.prompt_lengths) + sum(tree.response_lengths)
        if self._step is not None:
            self._flops += self._step.count(batch)
        every, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_at:
            self._logged_at = step
            self._stop(pl_module.device)
            self._log(trainer, pl_module)
            self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the clock."""
        self._since = time.perf_counter()

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        found = {TOKENS_PER_SECOND: self._tokens / self._seconds}
        if self._step is not None and self._peak is not None:
            found[MFU] = self._flops / self._seconds / self._peak / trainer.world_size
        rates = torch.tensor(list(found.values()), dtype=torch.float32, device=module.device)
        total: Any = trainer.strategy.reduce(rates, reduce_op="sum")
        for name, rate in zip(found, total.cpu(), strict=True):
            module.log(name, rate, prog_bar=True, batch_size=1)

    def _start(self) -> None:
        self._tokens, self._flops, self._seconds, self._since = 0, 0.0, 0.0, time.perf_counter()

    def _stop(self, device: torch.device) -> None:
        # A step only queues work on a GPU. The clock runs from one synchronisation to the next, so it covers
        # the work of exactly the steps counted, however far the CPU ran ahead in between.
        torch.get_device_module(device).synchronize()
        self._seconds += time.perf_counter() - self._since


class _StepFlops:
    """The operations of a batch: the policy's passes, and those of references on its device."""

    def __init__(self, module: Any, policy: ModelFlops, references: list[ModelFlops]) -> None:
        self._policy, self._references = policy, references
        self._views: dict[str, bool] = {name: name in module.needs.trained_views for name in module.views}
        self._logits: bool = module.reads_log_probs

    @classmethod
    def of(cls, trainer: Trainer, module: Any) -> _StepFlops | None:
        """Return what a run's batches take; ``None`` where it isn't known."""
        policy: nn.Module = module.policy
        if not module.one_pass or not any(weight.requires_grad for weight in policy.parameters()):
            return None
        own = ModelFlops.of(policy)
        found = [own, *_references(trainer, module.policy_spec, own)]
        known = [one for one in found if one is not None]
        return cls(module, known[0], known[1:]) if len(known) == len(found) else None

    def count(self, batch: PreferenceBatch) -> float:
        """Return the operations that a training batch takes."""
        total = self._policy.training(batch.trees[PLAIN], logits=self._logits)
        for name, trained in self._views.items():
            count = self._policy.training if trained else self._policy.forward
            total += count(batch.trees[name], logits=self._logits)
        return total + sum(model.forward(tree) for model in self._references for tree in batch.trees.values())


def _references(trainer: Any, policy: PolicySpec, own: ModelFlops | None) -> list[ModelFlops | None]:
    """Return the models of references that score each batch on the policy's device."""
    members = [
        member
        for callback in trainer.callbacks
        if isinstance(callback, ReferenceEnsemble)
        for member in callback.members
        if not (callback.precompute and member.precomputable)
    ]
    footprints = [footprint for member in members if (footprint := member.footprint(policy)) is not None]
    if own is not None and policy.has_adapter:
        own = replace(own, trained=0)  # the policy's adapter is off
    return [
        own if one.model is None else ModelFlops.of(sketch_frozen(one.model))
        for one in footprints
        if one.scores
    ]

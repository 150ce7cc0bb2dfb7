"""A training step on fake tensors, which have shapes and no values, to measure its memory."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pl_prefopt.fast_layers import unfused
from pl_prefopt.modules import PreferenceModule
from pl_prefopt.modules.checkpoints import trained_weights
from pl_prefopt.planning.fake_tensors import untraced, with_fake_values, with_fake_weights
from pl_prefopt.planning.memory_tracker import MemoryTracker
from pl_prefopt.planning.optimisers import make_states, take_step, use_foreach
from pl_prefopt.planning.parts import (
    BUCKETS,
    GATHERED,
    GRADIENTS,
    OPTIMISER,
    REFERENCES,
    SPLIT_REFERENCES,
    WEIGHTS,
    by_shape,
    gathered_layers,
    gathered_once,
    shares_of,
)
from pl_prefopt.planning.plan import Plan
from pl_prefopt.planning.sharing import Sharing
from pl_prefopt.policies import sketch_frozen, sketch_second_adapter, with_fast_layers
from pl_prefopt.references import Footprint, ReferenceAnswers
from pl_prefopt.scoring import (
    HiddenStates,
    LogProbs,
    Readout,
    Scorer,
    Vocabulary,
    check_length,
    evaluating,
)
from pl_prefopt.types import PLAIN, PreferenceBatch


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Runs a training step of the real code on fake tensors and tracks its memory.

    The step is one in mid-training: optimiser states exist, and so do the previous step's gradients until
    the backward pass, as in Lightning. The objective's own tensors, a few numbers per response, are left out.

    Attributes:
        module: the module to train; its policy is set to a model on the meta device.
        batch: a batch, real or fake, of which only the shapes matter.
        references: the footprints of the references that score during training.
        precomputed: the footprints of the references that score all rows before the first step.
        precision: Lightning's precision plugin.
        compute: the dtype in which sharded weights are gathered; their own by default.
        sharing: how the run is divided between devices.
        accumulate: whether gradients of several batches are accumulated.
        on_cpu: whether the step runs on a CPU, where optimisers update one weight at a time, and trees have
            masks.
    """

    module: PreferenceModule
    batch: PreferenceBatch
    references: Sequence[Footprint] = ()
    precomputed: Sequence[Footprint] = ()
    precision: Precision = field(default_factory=Precision)
    compute: torch.dtype | None = None
    sharing: Sharing = Sharing()  # noqa: RUF009 - frozen
    accumulate: bool = False
    on_cpu: bool = False

    def run(self) -> Plan:
        """Return the peaks of the step's phases.

        Raises:
            ConfigError: if a model's configuration can't be read.
            DataError: if the batch is longer than the model takes.
        """
        policy = self._sketch()
        for tree in self.batch.trees.values():
            check_length(policy, tree)  # fake tensors have no lengths to check
        weights = [*policy.parameters(), *self.module.heads.parameters()]
        counts = [sum(weight.numel() for weight in some) for some in (weights, _trained(weights))]
        beforehand = [_Stub.of(replace(footprint, resident=False)) for footprint in self.precomputed]
        beside = [_Stub.of(footprint) for footprint in self.references]
        gathered = gathered_layers(policy, self.compute) + gathered_once(policy, self.compute)
        tracker = MemoryTracker(by_shape(policy), shares_of(self.sharing))
        with FakeTensorMode(), untraced(), tracker:
            with tracker.making(WEIGHTS):
                with_fake_weights(policy)
                with_fake_weights(self.module.heads)
            with tracker.making(GATHERED):
                whole = torch.empty(gathered, dtype=torch.uint8)
            batch = with_fake_values(self.batch)
            with tracker.phase("scoring all rows with the references, before training"):
                self._score(tracker, beforehand, batch)
            paged = self._step(tracker, batch, beside)
            del whole
        phases = {name: dict(peak) for name, peak in tracker.peaks.items()}
        return Plan(parameters=counts[0], trained=counts[1], phases=phases, paged=paged)

    def _sketch(self) -> Any:
        # Compiled layers keep less than is counted here, by no rule that is known before they are compiled.
        spec = replace(self.module.policy_spec, compile=None)
        policy: Any = with_fast_layers(self.module.sketch_policy(), spec, unfused)
        for footprint in (*self.references, *self.precomputed):
            if footprint.adapter is not None:
                sketch_second_adapter(policy, footprint.adapter)
        self.module.policy = policy
        with torch.device("meta"):
            self.module.heads = self.module.build_heads(policy)
        self.precision.convert_module(self.module)
        self._presume(self.module.scorer, policy)
        return policy

    def _presume(self, scorer: Scorer, model: nn.Module) -> None:
        with self.precision.forward_context():
            scorer.presume(model, torch.device("cpu" if self.on_cpu else "cuda"))

    def _step(self, tracker: MemoryTracker, batch: PreferenceBatch, references: list[_Stub]) -> int:
        named = trained_weights(self.module)
        weights = list(named.values())
        with tracker.making(OPTIMISER):
            optimizer = self.module.build_optimizer(named)
        if not self.on_cpu:
            use_foreach(optimizer)
        with tracker.making(GRADIENTS):
            for weight in self.module.masters.optimised(weights):
                weight.grad = torch.empty_like(weight)
            for weight in weights:
                hooked: Any = weight
                hooked.register_post_accumulate_grad_hook(lambda w: tracker.move(w.grad, GRADIENTS))
        with tracker.making(BUCKETS):
            buckets = [torch.empty_like(weight) for weight in weights if self.sharing.buckets]
        with tracker.making(OPTIMISER):
            paged = make_states(optimizer)
        with tracker.phase("scoring with the references"):
            answers = self._score(tracker, references, batch)
        with tracker.phase("forward and backward pass"):
            with self.precision.forward_context():
                scored: Any = self.module.score_with(batch, answers)
            if not self.accumulate:
                optimizer.zero_grad()
            divergences = scored.tokens.kl.values() if scored.tokens is not None else ()
            sum(part.sum() for part in (scored.policy.sum, *divergences, *scored.outputs.values())).backward()
            with tracker.making(GRADIENTS):
                self.module.masters.take_gradients()
        with tracker.phase("optimiser step"), tracker.making(OPTIMISER):
            take_step(optimizer)
        del buckets
        return paged

    @torch.no_grad()
    def _score(self, tracker: MemoryTracker, stubs: list[_Stub], batch: PreferenceBatch) -> ReferenceAnswers:
        """Score the batch with the references; return what is resident until the loss is computed."""
        request = self.module.reference_tokens
        readouts: list[Readout] = [LogProbs()]
        if request is not None and request.kl:
            readouts.append(HiddenStates())
        vocabularies: list[Vocabulary] = []
        for stub in stubs:
            policy = self.module.policy
            if stub.model is not None and not stub.ready:
                self._make(tracker, stub, stub.model)
            if stub.footprint.start and not stub.ready:
                with tracker.making(REFERENCES):
                    stub.start = [torch.empty_like(weight) for weight in _trained(policy.parameters())]
                stub.ready = True
            if stub.footprint.scores:
                model = stub.model or policy
                scorer = Scorer()
                self._presume(scorer, model)
                with self.precision.forward_context(), evaluating(model):
                    for view, tree in batch.trees.items():
                        _, *states = scorer.read(model, tree, readouts if view == PLAIN else readouts[:1])
                        vocabularies += [scorer.vocabulary(model, one, nullcontext) for one in states]
            if not stub.footprint.resident:
                stub.model = stub.gathered = None
                stub.start = []
                gc.collect()
        return ReferenceAnswers(log_probs={}, vocabularies=tuple(vocabularies))

    def _make(self, tracker: MemoryTracker, stub: _Stub, model: nn.Module) -> None:
        split = stub.footprint.split and self.sharing.shards > 1
        if split:
            with tracker.making(GATHERED):
                stub.gathered = torch.empty(gathered_once(model, self.compute), dtype=torch.uint8)
        with tracker.making(SPLIT_REFERENCES if split else REFERENCES):
            with_fake_weights(model)
        stub.ready = True


@dataclass
class _Stub:
    """A reference's memory on the policy's device."""

    footprint: Footprint
    model: nn.Module | None
    gathered: Tensor | None = None
    start: list[Tensor] = field(default_factory=list)
    ready: bool = False

    @classmethod
    def of(cls, footprint: Footprint) -> _Stub:
        return cls(footprint, None if footprint.model is None else sketch_frozen(footprint.model))


def _trained(weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [weight for weight in weights if weight.requires_grad]

"""A training step without numbers: the code of a real one, on tensors that have only shapes."""

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

from pl_prefopt.modules import PreferenceModule
from pl_prefopt.modules.output_heads import build_heads
from pl_prefopt.planning.fakes import batch_of_fakes, model_of_fakes, untraced
from pl_prefopt.planning.ledger import Ledger
from pl_prefopt.planning.optimisers import go_over_all_weights_at_once, make_states, take_step
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
from pl_prefopt.policies import sketch_frozen, sketch_policy, sketch_second_adapter
from pl_prefopt.references import Held, ReferenceAnswers
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
class Rehearsal:
    """A step in mid-training, run on fake tensors while a ledger counts what it holds.

    Optimiser states are there, and so are the last step's gradients until the backward pass, as in Lightning.
    The objective's own numbers, a few a response, are left out.

    Attributes:
        module: what is trained; it gets a sketch as its policy.
        batch: real or not, only its shapes count.
        references: what the references hold while the policy trains.
        precomputed: what those hold that score all rows before the first step.
        precision: Lightning's plugin.
        compute: the type in which sharded weights are gathered; their own by default.
        sharing: how devices divide the run.
        accumulate: whether gradients of several batches are added up.
        on_cpu: whether the step runs on a CPU, where optimisers go weight by weight.
    """

    module: PreferenceModule
    batch: PreferenceBatch
    references: Sequence[Held] = ()
    precomputed: Sequence[Held] = ()
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
        beforehand = [_StandIn.of(replace(held, stays=False)) for held in self.precomputed]
        beside = [_StandIn.of(held) for held in self.references]
        gathered = gathered_layers(policy, self.compute) + gathered_once(policy, self.compute)
        ledger = Ledger(by_shape(policy), shares_of(self.sharing))
        with FakeTensorMode(), untraced(), ledger:
            with ledger.making(WEIGHTS):
                model_of_fakes(policy)
                model_of_fakes(self.module.heads)
            with ledger.making(GATHERED):
                whole = torch.empty(gathered, dtype=torch.uint8)
            batch = batch_of_fakes(self.batch)
            with ledger.phase("scoring all rows with the references, before training"):
                self._score(ledger, beforehand, batch)
            paged = self._step(ledger, batch, beside)
            del whole
        phases = {name: dict(peak) for name, peak in ledger.peaks.items()}
        return Plan(parameters=counts[0], trained=counts[1], phases=phases, paged=paged)

    def _sketch(self) -> Any:
        policy = sketch_policy(self.module.policy_spec)
        for held in (*self.references, *self.precomputed):
            if held.adapter is not None:
                sketch_second_adapter(policy, held.adapter)
        self.module.policy = policy
        with torch.device("meta"):
            self.module.heads = build_heads(self.module.objective.needs.heads, policy)
        self.precision.convert_module(self.module)
        self.module.scorer.presume(policy)
        return policy

    def _step(self, ledger: Ledger, batch: PreferenceBatch, references: list[_StandIn]) -> int:
        weights = _trained([*self.module.policy.parameters(), *self.module.heads.parameters()])
        with ledger.making(OPTIMISER):
            optimizer = self.module.make_optimizer(weights)
        if not self.on_cpu:
            go_over_all_weights_at_once(optimizer)
        with ledger.making(GRADIENTS):
            for weight in weights:
                weight.grad = torch.empty_like(weight)
                hooked: Any = weight
                hooked.register_post_accumulate_grad_hook(lambda w: ledger.move(w.grad, GRADIENTS))
        with ledger.making(BUCKETS):
            buckets = [torch.empty_like(weight) for weight in weights if self.sharing.buckets]
        with ledger.making(OPTIMISER):
            paged = make_states(optimizer)
        with ledger.phase("scoring with the references"):
            answers = self._score(ledger, references, batch)
        with ledger.phase("forward and backward pass"):
            with self.precision.forward_context():
                scored: Any = self.module.score_beside(batch, answers)
            if not self.accumulate:
                optimizer.zero_grad()
            divergences = scored.tokens.kl.values() if scored.tokens is not None else ()
            sum(part.sum() for part in (scored.policy.sum, *divergences, *scored.outputs.values())).backward()
        with ledger.phase("optimiser step"), ledger.making(OPTIMISER):
            take_step(optimizer)
        del buckets
        return paged

    @torch.no_grad()
    def _score(self, ledger: Ledger, stand_ins: list[_StandIn], batch: PreferenceBatch) -> ReferenceAnswers:
        """Score the batch with the references; return what stays of it until the loss is computed."""
        request = self.module.tokens
        readouts: list[Readout] = [LogProbs()]
        if request is not None and request.kl:
            readouts.append(HiddenStates())
        vocabularies: list[Vocabulary] = []
        for stand_in in stand_ins:
            policy = self.module.policy
            if stand_in.model is not None and not stand_in.ready:
                self._make(ledger, stand_in, stand_in.model)
            if stand_in.held.start and not stand_in.ready:
                with ledger.making(REFERENCES):
                    stand_in.start = [torch.empty_like(weight) for weight in _trained(policy.parameters())]
                stand_in.ready = True
            if stand_in.held.scores:
                model = stand_in.model or policy
                scorer = Scorer()
                scorer.presume(model)
                with self.precision.forward_context(), evaluating(model):
                    for view, tree in batch.trees.items():
                        _, *states = scorer.read(model, tree, readouts if view == PLAIN else readouts[:1])
                        vocabularies += [scorer.vocabulary(model, one, nullcontext) for one in states]
            if not stand_in.held.stays:
                stand_in.model = stand_in.gathered = None
                stand_in.start = []
                gc.collect()
        return ReferenceAnswers(log_probs={}, vocabularies=tuple(vocabularies))

    def _make(self, ledger: Ledger, stand_in: _StandIn, model: nn.Module) -> None:
        split = stand_in.held.split and self.sharing.shards > 1
        if split:
            with ledger.making(GATHERED):
                stand_in.gathered = torch.empty(gathered_once(model, self.compute), dtype=torch.uint8)
        with ledger.making(SPLIT_REFERENCES if split else REFERENCES):
            model_of_fakes(model)
        stand_in.ready = True


@dataclass
class _StandIn:
    """A reference's part on the policy's device."""

    held: Held
    model: nn.Module | None
    gathered: Tensor | None = None
    start: list[Tensor] = field(default_factory=list)
    ready: bool = False

    @classmethod
    def of(cls, held: Held) -> _StandIn:
        return cls(held, None if held.model is None else sketch_frozen(held.model))


def _trained(weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [weight for weight in weights if weight.requires_grad]

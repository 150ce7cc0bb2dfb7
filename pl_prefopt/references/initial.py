"""The default reference: the policy as it was before training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.errors import ContractError
from pl_prefopt.policies import PolicySpec, build_frozen, sketch_frozen
from pl_prefopt.references.adapters import AdapterOff, NamedAdapter
from pl_prefopt.references.base import Datasets, Footprint, PolicyHost, Reference, Running
from pl_prefopt.references.swapping import swapped_in
from pl_prefopt.scoring import Scorer, evaluating
from pl_prefopt.types import PreferenceBatch


class InitialPolicy(Reference):
    """The policy as it was before training.

    With a plain new adapter that is the policy with its adapter off. Where an adapter starts as more than its
    base (a saved one, DoRA, PiSSA) or trains parts of the base (biases), it is the policy with a copy of its
    trained weights as they started. Where all weights are trained, it is a frozen copy of the model.
    """

    live = True

    def __init__(self) -> None:
        self._chosen: Reference | None = None

    def check(self, policy: PolicySpec) -> None:
        """Raise if the chosen implementation is incompatible with ``policy``."""
        self._of(policy).check(policy)

    def fingerprint(self, policy: PolicySpec) -> str:
        """Return the fingerprint of the chosen implementation."""
        return self._of(policy).fingerprint(policy)

    def footprint(self, policy: PolicySpec) -> Footprint | None:
        """Return the footprint of the chosen implementation."""
        return self._of(policy).footprint(policy)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the copy, if one is needed."""
        self._of(host.policy_spec).prepare(host, datasets)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        return self._of(host.policy_spec).log_probs(host, batch, view)

    def running(self, host: PolicyHost) -> AbstractContextManager[Running]:
        """Return the context of the chosen implementation."""
        return self._of(host.policy_spec).running(host)

    def release(self) -> None:
        """Free the copy, if there is one."""
        if self._chosen is not None:
            self._chosen.release()

    def _of(self, policy: PolicySpec) -> Reference:
        if self._chosen is None:
            if not policy.has_adapter:
                self._chosen = _Copy()
            else:
                self._chosen = AdapterOff() if policy.starts_at_base else _Start()
        return self._chosen


class _Start(Reference):
    """The policy with its trained weights as they were before the first step."""

    live = True

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}

    def check(self, policy: PolicySpec) -> None:
        """Raise a ``ConfigError`` if the policy's adapter can't be used."""
        policy.adapter_settings()

    def fingerprint(self, policy: PolicySpec) -> str:
        """Return a fingerprint of the base and of the adapter's folder or settings."""
        if policy.adapter is not None:
            return NamedAdapter(policy.adapter).fingerprint(policy)
        settings = {key: value for key, value in (policy.lora or {}).items() if key != "lora_dropout"}
        described = json.dumps(settings, sort_keys=True, default=str) + version("peft")
        return f"start-{policy.fingerprint}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return the footprint of a copy of the trained weights and one forward pass per batch."""
        return Footprint(start=True)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Copy the weights to the policy's device."""
        if isinstance(host.policy, FSDPModule):
            raise ContractError(
                "The reference InitialPolicy can't keep the start of this adapter with sharded weights: use "
                "trainer.strategy ddp, or plain LoRA settings."
            )
        trained = dict(host.policy.named_parameters())
        self._weights = {
            name: weight.to(trained[name].device, trained[name].dtype) for name, weight in host.start.items()
        }

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            return scorer(model, batch.trees[view]).sum

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Restore the policy's initial weights within the context."""
        if not self._weights:
            raise ContractError("InitialPolicy.prepare must run before log_probs.")
        with evaluating(host.policy), swapped_in(host.policy, self._weights):
            yield Running(host.policy, host.scorer)

    def release(self) -> None:
        """Free the copies."""
        self._weights = {}


class _Copy(Reference):
    """A second copy of the policy's model, sharded where the policy is."""

    live = True

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self._scorer: Scorer | None = None

    def fingerprint(self, policy: PolicySpec) -> str:
        """Return the fingerprint of ``AdapterOff``, whose log-probs are the same."""
        return AdapterOff().fingerprint(policy)

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return the footprint of a second model."""
        return Footprint(model=_frozen(policy), split=True)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the model onto the policy's device."""
        if self.model is None:
            copy = host.load(_frozen(host.policy_spec), build_frozen, sketch_frozen)
            self.model = copy.to(host.device)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            return scorer(model, batch.trees[view]).sum

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Run the second model."""
        if self.model is None:
            raise ContractError("InitialPolicy.prepare must run before log_probs.")
        if self._scorer is None:
            self._scorer = host.scorer.another()
        yield Running(self.model, self._scorer)

    def release(self) -> None:
        """Free the model."""
        self.model = self._scorer = None


def _frozen(policy: PolicySpec) -> PolicySpec:
    return dataclasses.replace(policy, gradient_checkpointing=False)

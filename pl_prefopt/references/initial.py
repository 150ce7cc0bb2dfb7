"""The usual reference, whatever part of the policy is trained."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from pl_prefopt.errors import ContractError
from pl_prefopt.policies import PolicySpec, build_frozen, sketch_frozen
from pl_prefopt.references.adapters import AdapterOff, NamedAdapter
from pl_prefopt.references.base import Datasets, Held, PolicyHost, Reference
from pl_prefopt.types import PreferenceBatch


class InitialPolicy(Reference):
    """The policy as it was before training.

    Under a new adapter that is the policy with its adapter off; where training takes up an adapter, that
    adapter as it was; where all weights are trained, a frozen copy, which costs a model's memory.
    """

    def __init__(self) -> None:
        self._chosen: Reference | None = None

    def check(self, policy: PolicySpec) -> None:
        """Raise if what stands for the initial policy can't work beside ``policy``."""
        self._of(policy).check(policy)

    def fingerprint(self, policy: PolicySpec) -> str:
        """That of what stands for the initial policy."""
        return self._of(policy).fingerprint(policy)

    def held(self, policy: PolicySpec) -> Held | None:
        """What it takes of the policy's device, as that which stands for the initial policy does."""
        return self._of(policy).held(policy)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load what is not there already."""
        self._of(host.policy_spec).prepare(host, datasets)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        return self._of(host.policy_spec).log_probs(host, batch, view)

    def release(self) -> None:
        """Free the copy, if there is one."""
        if self._chosen is not None:
            self._chosen.release()

    def _of(self, policy: PolicySpec) -> Reference:
        if self._chosen is None:
            if policy.adapter is not None:
                self._chosen = NamedAdapter(policy.adapter)
            else:
                self._chosen = AdapterOff() if policy.has_adapter else _Copy()
        return self._chosen


class _Copy(Reference):
    """The policy's model, loaded a second time; split between processes where the policy is."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None

    def fingerprint(self, policy: PolicySpec) -> str:
        """That of ``AdapterOff``, whose numbers are the same."""
        return AdapterOff().fingerprint(policy)

    def held(self, policy: PolicySpec) -> Held:
        """A second model."""
        return Held(model=_frozen(policy), split=True)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the model onto the policy's device."""
        if self.model is None:
            copy = host.load(_frozen(host.policy_spec), build_frozen, sketch_frozen)
            self.model = copy.to(host.device)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        if self.model is None:
            raise ContractError("InitialPolicy.prepare must run before log_probs.")
        return host.scorer(self.model, batch.trees[view]).sum

    def release(self) -> None:
        """Free the model."""
        self.model = None


def _frozen(policy: PolicySpec) -> PolicySpec:
    return dataclasses.replace(policy, gradient_checkpointing=False)

"""References that share the policy's base model and so cost no memory of their own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.errors import ContractError, first_line
from pl_prefopt.policies import PolicySpec, check_saved, keeps_base
from pl_prefopt.references.base import Datasets, Footprint, PolicyHost, Reference, Running
from pl_prefopt.scoring import evaluating
from pl_prefopt.types import PreferenceBatch


class AdapterOff(Reference):
    """The policy's base model: the policy with its adapter switched off."""

    live = True

    def check(self, policy: PolicySpec) -> None:
        """Raise a ``ContractError`` if there is no adapter, or if what is left without it is not the base."""
        _require_adapter(policy, "AdapterOff")

    def fingerprint(self, policy: PolicySpec) -> str:
        """The base model's own."""
        return f"base-{dataclasses.replace(policy, adapter=None).fingerprint}"

    def footprint(self, policy: PolicySpec) -> Footprint:
        """A forward pass a batch and nothing else."""
        return Footprint()

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Nothing to do: the policy is there already."""

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            return scorer(model, batch.trees[view]).sum

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Switch the adapter off meanwhile."""
        policy: Any = host.policy
        trained = _trained(policy)
        with evaluating(policy), policy.disable_adapter():
            # PEFT also marks the adapter as frozen meanwhile. FSDP2 looks at these marks when it first runs,
            # and would take the adapter for frozen ever after.
            _mark(trained)
            yield Running(policy, host.scorer)

    def release(self) -> None:
        """Nothing to free."""


class NamedAdapter(Reference):
    """Another PEFT adapter on the policy's base model, for instance the SFT adapter training started from.

    Args:
        folder: where PEFT saved the adapter.
    """

    live = True

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = f"reference_{hashlib.sha256(folder.encode()).hexdigest()[:8]}"

    def check(self, policy: PolicySpec) -> None:
        """Raise if the policy has no adapter over a plain base, or if the folder's adapter can't join it."""
        _require_adapter(policy, "NamedAdapter")
        if not keeps_base(check_saved(self.folder)):
            raise ContractError(
                f"The adapter '{self.folder}' changes the base that it would share with the policy (bias or "
                "layer_replication in its adapter_config.json): use pl_prefopt.references.FrozenModel with "
                f"model.adapter '{self.folder}'."
            )

    def fingerprint(self, policy: PolicySpec) -> str:
        """The base model's and the adapter's."""
        return f"adapter-{dataclasses.replace(policy, lora=None, adapter=self.folder).fingerprint}"

    def footprint(self, policy: PolicySpec) -> Footprint:
        """The adapter, and a forward pass a batch."""
        return Footprint(adapter=self.folder)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the adapter beside the policy's own."""
        policy: Any = host.policy
        if isinstance(policy, FSDPModule):
            raise ContractError(
                "The reference NamedAdapter can't join a policy whose weights are split between processes: "
                f"use trainer.strategy ddp, or pl_prefopt.references.FrozenModel with model.adapter "
                f"'{self.folder}'; or train on from the adapter merged into its base, by `prefopt export "
                "CHECKPOINT --out FOLDER --merge true --dtype float32` and policy.name FOLDER."
            )
        if self.name not in policy.peft_config:
            # PEFT leaves all parts in evaluation mode, and its older versions the policy's adapter frozen.
            trained = _trained(policy)
            try:
                with evaluating(policy):
                    policy.load_adapter(self.folder, adapter_name=self.name, is_trainable=False)
            except ValueError as error:  # PEFT doesn't combine all kinds
                raise ContractError(
                    f"The adapter '{self.folder}' can't join the policy's ({first_line(error)}): use "
                    f"pl_prefopt.references.FrozenModel with model.adapter '{self.folder}'."
                ) from error
            _mark(trained)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            return scorer(model, batch.trees[view]).sum

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Put the adapter in the place of the policy's meanwhile."""
        with evaluating(host.policy), self._active(host.policy):
            yield Running(host.policy, host.scorer)

    def release(self) -> None:
        """Nothing to free: the adapter stays with the policy, frozen, and is saved nowhere."""

    @contextmanager
    def _active(self, policy: Any) -> Iterator[None]:
        # set_adapter decides anew which parameters train, so what they were is kept and put back.
        own = policy.active_adapter
        trained = _trained(policy)
        policy.set_adapter(self.name)
        try:
            yield
        finally:
            policy.set_adapter(own)
            _mark(trained)


def _trained(policy: Any) -> dict[Any, bool]:
    return {parameter: parameter.requires_grad for parameter in policy.parameters()}


def _mark(trained: dict[Any, bool]) -> None:
    for parameter, requires_grad in trained.items():
        parameter.requires_grad_(requires_grad)


def _require_adapter(policy: PolicySpec, reference: str) -> None:
    """Refuse a policy that doesn't have its plain base at hand, under an adapter that can be switched off."""
    settings = policy.adapter_settings()
    if settings is None:
        raise ContractError(
            f"The reference {reference} needs a policy with an adapter, but all weights of '{policy.name}' "
            "are trained: set model.init_args.policy.lora, or use pl_prefopt.references.FrozenModel."
        )
    if not keeps_base(settings):
        raise ContractError(
            f"The reference {reference} needs the plain base under the policy's adapter, but "
            "init_lora_weights, bias or layer_replication of that adapter changes it: use "
            "pl_prefopt.references.InitialPolicy for the policy as it starts, or FrozenModel."
        )

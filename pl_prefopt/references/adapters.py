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
        """Return the base model's fingerprint."""
        return f"base-{dataclasses.replace(policy, adapter=None).fingerprint}"

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return the footprint of one forward pass per batch."""
        return Footprint()

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Do nothing: the policy is already loaded."""

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            return scorer(model, batch.trees[view]).sum

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Disable the adapter within the context."""
        policy: Any = host.policy
        trained = _trained(policy)
        with evaluating(policy), policy.disable_adapter():
            # PEFT also sets requires_grad=False on the adapter meanwhile. FSDP2 reads it on its first run,
            # and would treat the adapter as frozen from then on.
            _mark(trained)
            yield Running(policy, host.scorer)

    def release(self) -> None:
        """Do nothing: there is no memory to free."""


class NamedAdapter(Reference):
    """Another PEFT adapter on the policy's base model, for instance the SFT adapter training started from.

    Args:
        folder: a folder with an adapter saved by PEFT.
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
        """Return a fingerprint of base model and adapter."""
        return f"adapter-{dataclasses.replace(policy, lora=None, adapter=self.folder).fingerprint}"

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return the footprint of the adapter and one forward pass per batch."""
        return Footprint(adapter=self.folder)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the adapter alongside the policy's own."""
        policy: Any = host.policy
        if isinstance(policy, FSDPModule):
            raise ContractError(
                "The reference NamedAdapter can't be added to a policy with sharded weights: use "
                "trainer.strategy ddp, or pl_prefopt.references.FrozenModel with model.adapter "
                f"'{self.folder}'; or continue training from the adapter merged into its base, by `prefopt "
                "export CHECKPOINT --out FOLDER --merge true --dtype float32` and policy.name FOLDER."
            )
        if self.name not in policy.peft_config:
            # PEFT leaves the model in evaluation mode, and older versions leave the policy's adapter frozen.
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
        """Activate the adapter in place of the policy's own within the context."""
        with evaluating(host.policy), self._active(host.policy):
            yield Running(host.policy, host.scorer)

    def release(self) -> None:
        """Do nothing: the adapter remains in the policy, frozen, and isn't saved in checkpoints."""

    @contextmanager
    def _active(self, policy: Any) -> Iterator[None]:
        # set_adapter changes requires_grad of parameters, so their values are saved and restored.
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
    """Refuse a policy that isn't its plain base when its adapter is disabled."""
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

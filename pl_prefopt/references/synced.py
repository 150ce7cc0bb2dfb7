"""A reference that follows the policy: TR-DPO's."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references.base import Datasets, Footprint, PolicyHost, Reference, Running
from pl_prefopt.references.swapping import swapped_in
from pl_prefopt.scoring import evaluating
from pl_prefopt.types import PreferenceBatch

_A, _B = ".lora_A.", ".lora_B."
_LINEAR = ("Linear", "Linear4bit", "Linear8bitLt")


class SyncedPolicy(Reference):
    """A copy of the policy that is synchronised with it in training: π_ref ← απ_θ + (1 − α)π_ref, on weights.

    Gorbatovski et al., "Learn Your Reference Model for Real Good Alignment" (TR-DPO), arXiv 2404.09656; TRL's
    ``sync_ref_model``. The reference starts as the policy does, and is synchronised after every ``every``
    optimiser steps. It is part of the run's checkpoints. Averages are kept in float32 or better.

    Of a LoRA adapter the product BA of its factors is averaged, as if it were merged into the base: the
    reference's factors are stacked, [A_θ; A_ref] and [αB_θ, (1 − α)B_ref], so that their rank grows with each
    synchronisation, at most to the size of the layer. With α = 1 they are copied.

    Args:
        alpha: α in (0, 1], the share of the policy; 1 copies it. 0.6 in the paper.
        every: τ ≥ 1, in optimiser steps. 512 in the paper.

    Raises:
        ConfigError: if a setting is out of range.
    """

    live = True
    follows_policy: ClassVar[bool] = True

    def __init__(self, alpha: float = 0.6, every: int = 512) -> None:
        if not 0 < alpha <= 1:
            raise ConfigError(f"expected `alpha` above 0 and at most 1, got {alpha}.")
        if every < 1:
            raise ConfigError(f"expected `every` of at least 1 optimiser step, got {every}.")
        self.alpha, self.every = alpha, every
        self._weights: dict[str, Tensor] = {}  # in float32 or better
        self._running: dict[str, Tensor] = {}  # the same in the policy's precision, on its device
        self._step = 0  # the optimiser step up to which the policy has been followed
        self._of: weakref.ref[nn.Module] | None = None  # the policy that it follows

    def check(self, policy: PolicySpec) -> None:
        """Raise a ``ContractError`` if averages of this adapter's weights would not be its average."""
        settings = policy.adapter_settings() or {}
        found = [name for name in ("use_dora", "target_parameters") if settings.get(name)]
        if self.alpha < 1 and found:
            raise _not_linear(found[0])

    def fingerprint(self, policy: PolicySpec) -> str:
        """Raise a ``ContractError``: its log-probs change in the course of a run."""
        raise ContractError(
            "The reference SyncedPolicy changes during training, so that its log-probs can't be precomputed: "
            "set references.precompute to false."
        )

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return the footprint of a copy of the trained weights and one forward pass per batch."""
        return Footprint(start=True)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Start as the policy, unless the reference was prepared or loaded from a checkpoint before."""
        if isinstance(host.policy, FSDPModule):
            raise ContractError(
                "The reference SyncedPolicy can't follow a policy with sharded weights: use trainer.strategy "
                "ddp, or pl_prefopt.references.InitialPolicy."
            )
        self._start(host.policy)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            return scorer(model, batch.trees[view]).sum

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Give the policy the reference's weights within the context."""
        self._start(host.policy)
        if not self._running:
            policy = dict(host.policy.named_parameters())
            self._running = {
                name: weight.to(policy[name].device, policy[name].dtype)
                for name, weight in self._weights.items()
            }
        with evaluating(host.policy), swapped_in(host.policy, self._running):
            yield Running(host.policy, host.scorer)

    def follow(self, host: PolicyHost, step: int) -> None:
        """Synchronise if a multiple of ``every`` has been reached since the last call.

        Args:
            host: the module, with the policy as it is after ``step``.
            step: the number of optimiser steps taken.
        """
        self._start(host.policy)
        if step // self.every > self._step // self.every:
            self._synchronise(host.policy)
        self._step = step

    def state(self) -> dict[str, Any]:
        """Return the weights and the position, for a checkpoint."""
        return {"weights": self._weights, "step": self._step, "alpha": self.alpha, "every": self.every}

    def restore(self, host: PolicyHost, state: Mapping[str, Any]) -> None:
        """Continue from the ``state`` of a checkpoint."""
        for name in ("alpha", "every"):
            if state[name] != getattr(self, name):
                rank_zero_warn(
                    f"From here on the reference's {name} is {getattr(self, name)}; the checkpoint's was "
                    f"{state[name]}."
                )
        self._weights, self._running, self._step = dict(state["weights"]), {}, state["step"]
        # A checkpoint from before the start, as a tuner makes, has no weights: start anew then.
        self._of = weakref.ref(host.policy) if self._weights else None

    def release(self) -> None:
        """Free the copies on the device; the weights stay in main memory, since training has made them."""
        self._running = {}
        self._weights = {name: weight.cpu() for name, weight in self._weights.items()}

    @torch.no_grad()
    def _start(self, policy: nn.Module) -> None:
        if self._of is not None and self._of() is policy:
            return
        if self.alpha < 1:
            _check_linear(policy)
        self._weights, self._running = {name: _copy(weight) for name, weight in _trained(policy)}, {}
        self._step, self._of = 0, weakref.ref(policy)

    @torch.no_grad()
    def _synchronise(self, policy: nn.Module) -> None:
        now = {name: _copy(weight) for name, weight in _trained(policy)}
        before = {name: self._weights[name].to(weight) for name, weight in now.items()}
        if self.alpha == 1:
            self._weights = now
        else:
            self._weights = {}
            for name in now:
                if _A in name:
                    other = name.replace(_A, _B)
                    pair = _stacked((now[name], now[other]), (before[name], before[other]), self.alpha)
                    self._weights[name], self._weights[other] = pair
                elif not _is_factor(name):
                    self._weights[name] = torch.lerp(before[name], now[name], self.alpha)
        self._running = {}


def _stacked(
    now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], alpha: float
) -> tuple[Tensor, Tensor]:
    """Return factors A and B with BA = α B_now A_now + (1 − α) B_before A_before."""
    (a, b), (old_a, old_b) = now, before
    if not old_b.any():  # as at the start of a new adapter
        return a, alpha * b
    a, b = torch.cat([a, old_a]), torch.cat([alpha * b, (1 - alpha) * old_b], dim=1)
    rows, columns = len(b), a.shape[1]
    if len(a) <= min(rows, columns):
        return a, b
    whole = b @ a
    if rows < columns:
        return whole, torch.eye(rows, dtype=b.dtype, device=b.device)
    return torch.eye(columns, dtype=a.dtype, device=a.device), whole


def _trained(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in policy.named_parameters() if weight.requires_grad)


def _copy(weight: Tensor) -> Tensor:
    """Return a copy in float32 or better: in less, small α would be rounded away."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)


def _is_factor(name: str) -> bool:
    return name.endswith(".weight") and (_A in name or _B in name)


def _check_linear(policy: nn.Module) -> None:
    """Refuse adapters whose effect on the weights is anything but a product of two factors."""
    for name, _ in _trained(policy):
        if "lora_" not in name:
            continue
        layer: Any = policy.get_submodule(name[: name.index(".lora_")])
        plain = type(layer).__name__ in _LINEAR and not getattr(layer, "lora_variant", None)
        if not plain or not (_A in name or _B in name):
            raise _not_linear(f"{type(layer).__name__}, '{name}'")


def _not_linear(what: str) -> ContractError:
    return ContractError(
        f"The reference SyncedPolicy averages the products of LoRA's factors, which this adapter ({what}) is "
        "more than: set references.members.init_args.alpha to 1, which copies the policy, or use plain LoRA "
        "on linear layers."
    )

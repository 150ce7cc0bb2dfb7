"""Float32 master copies of weights that are computed with in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules.averaging import CURRENT
from pl_prefopt.policies import PolicySpec


class _Pair(NamedTuple):
    name: str
    weight: nn.Parameter
    master: nn.Parameter


class MasterWeights:
    """Float32 copies of trained bfloat16 weights, which the optimiser updates in their place.

    A bfloat16 weight has eight significant bits: an update of less than a 512th of it is lost. Here the
    optimiser gets the copies, with its moments, in float32. After each backward pass the bfloat16 gradients
    are added to the copies' float32 ones and freed, so that accumulation, scaling, clipping and the update
    are in float32; after each step the copies are rounded to the weights. Weights in another dtype, such as
    those of a reward head, go to the optimiser as they are.
    """

    def __init__(self) -> None:
        self._pairs: list[_Pair] = []
        self._loaded: dict[str, Tensor] = {}

    def replace(self, weights: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        """Return the weights to give to the optimiser, with new copies in place of those in bfloat16.

        Copies start from loaded values, from earlier copies that still round to the weight, or from the
        weight.

        Args:
            weights: the trained weights by name.
        """
        known: Mapping[str, Tensor] = {**self.current(), **self._loaded}
        self._loaded = {}
        self._pairs = [
            _Pair(name, weight, nn.Parameter(_in_float32(known.get(name, weight), weight.device)))
            for name, weight in weights.items()
            if weight.dtype == torch.bfloat16
        ]
        return list(self.optimised(weights.values()))

    def optimised(self, weights: Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
        """Return the weights with their copies in their place, as the optimiser has them."""
        masters = {id(pair.weight): pair.master for pair in self._pairs}
        return (masters.get(id(weight), weight) for weight in weights)

    def follow(self, optimizer: Optimizer) -> None:
        """Round the copies to the weights after each step of ``optimizer``."""
        if self._pairs:
            optimizer.register_step_post_hook(lambda *_: self.write_back())

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the weights' gradients to those of their copies, and free them one by one."""
        for _, weight, master in self._pairs:
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies to the weights."""
        if self._pairs:
            torch._foreach_copy_([pair.weight for pair in self._pairs], self.values())

    def values(self) -> list[Tensor]:
        """Return the copies."""
        return [pair.master.detach() for pair in self._pairs]

    def of(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the trained weights by name, as their copies where there are some."""
        return {**weights, **{pair.name: pair.master.detach() for pair in self._pairs}}

    def current(self) -> dict[str, Tensor]:
        """Return the copies that round to their weights by name, and so are in use."""
        return {
            pair.name: pair.master.detach()
            for pair in self._pairs
            if torch.equal(pair.master.detach().to(pair.weight.dtype), pair.weight.detach())
        }

    @torch.no_grad()
    def load(self, checkpoint: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the copies from a checkpoint: now, and when they are made anew.

        Args:
            checkpoint: a checkpoint whose weights in ``state_dict``, or in that of Lightning's weight
                averaging, are the copies.
        """
        found = {**checkpoint.get("state_dict", {}), **checkpoint.get(CURRENT, {})}
        for pair in self._pairs:
            if pair.name in found:
                pair.master.copy_(found[pair.name])
        self._loaded = {} if self._pairs else found


def check_master_weights(policy: PolicySpec, *, precision: str, sharded: bool) -> None:
    """Raise a ``ConfigError`` if the run doesn't compute with bfloat16 weights that are whole.

    Args:
        policy: the policy.
        precision: the trainer's.
        sharded: whether weights are sharded.
    """
    if sharded:
        raise ConfigError(
            "model.init_args.master_weights needs whole weights. Under FSDP2, trainer.precision bf16-mixed "
            f"with policy.dtype float32 (here {policy.dtype}) does the same: shards, gradients and moments "
            "are float32, and layers are gathered in bfloat16. Remove master_weights."
        )
    if precision != "bf16-true":
        raise ConfigError(
            "model.init_args.master_weights keeps float32 copies of weights that are computed with in "
            f"bfloat16, but trainer.precision is {precision}: set trainer.precision to bf16-true, or remove "
            "master_weights."
        )


def _in_float32(values: Tensor, device: torch.device) -> Tensor:
    return values.detach().to(device, torch.float32, copy=True)

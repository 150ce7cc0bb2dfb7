"""Optimiser states on fake weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def make_states(optimizer: Optimizer) -> int:
    """Create the states of every weight, by a first step where the optimiser can take one.

    Returns:
        The bytes of the states that may be paged to main memory.
    """
    if not _has_own_kernels(optimizer):
        optimizer.step()
        return 0
    made: Any = optimizer
    # Paged memory is allocated through CUDA; unpaged states have the same size.
    paged, made.is_paged = made.is_paged, False
    for number, group in enumerate(made.param_groups):
        for place, weight in enumerate(group["params"]):
            made.init_state(group, weight, number, place)
    held = [state for states in made.state.values() for state in states.values() if isinstance(state, Tensor)]
    storages = {state.untyped_storage()._cdata: state.untyped_storage().nbytes() for state in held}
    return sum(storages.values()) if paged else 0


def take_step(optimizer: Optimizer) -> None:
    """Step, unless the optimiser's kernels need real values: those update states in place."""
    if not _has_own_kernels(optimizer):
        optimizer.step()


def use_foreach(optimizer: Optimizer) -> None:
    """Make a torch optimiser update all weights at once, as on a GPU, with temporaries of all of them."""
    for group in optimizer.param_groups:
        if group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True


def _has_own_kernels(optimizer: Optimizer) -> bool:
    """Whether states are created separately from the step, as in bitsandbytes."""
    return hasattr(optimizer, "init_state")

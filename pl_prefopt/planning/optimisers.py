"""What an optimiser holds, on weights without numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def make_states(optimizer: Optimizer) -> int:
    """Give every weight its states, by a first step where the optimiser can take one.

    Returns:
        The bytes of those states that may move to main memory.
    """
    if not _has_own_kernels(optimizer):
        optimizer.step()
        return 0
    made: Any = optimizer
    # Paged memory would come from CUDA; what is asked of it is the same size.
    paged, made.is_paged = made.is_paged, False
    for number, group in enumerate(made.param_groups):
        for place, weight in enumerate(group["params"]):
            made.init_state(group, weight, number, place)
    held = [state for states in made.state.values() for state in states.values() if isinstance(state, Tensor)]
    storages = {state.untyped_storage()._cdata: state.untyped_storage().nbytes() for state in held}
    return sum(storages.values()) if paged else 0


def take_step(optimizer: Optimizer) -> None:
    """Step, unless the optimiser's kernels need real numbers: those change states in place."""
    if not _has_own_kernels(optimizer):
        optimizer.step()


def go_over_all_weights_at_once(optimizer: Optimizer) -> None:
    """Let a torch optimiser work as it does on a GPU, where it holds temporaries of all weights."""
    for group in optimizer.param_groups:
        if group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True


def _has_own_kernels(optimizer: Optimizer) -> bool:
    """Whether states are made apart from the step, as bitsandbytes does."""
    return hasattr(optimizer, "init_state")

"""Running a policy with other values of its trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def swapped_in(policy: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters of ``policy`` other values within the context, without copying.

    Args:
        policy: the model.
        weights: values by parameter name, on the policy's device and in its precision.
    """
    replaced = {name: weight for name, weight in policy.named_parameters() if name in weights}
    now = {name: weight.data for name, weight in replaced.items()}
    try:
        for name, weight in replaced.items():
            weight.data = weights[name]
        yield
    finally:
        for name, weight in replaced.items():
            weight.data = now[name]

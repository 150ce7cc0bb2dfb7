"""How a strategy divides a run's memory between devices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)

from pl_prefopt.errors import ConfigError
from pl_prefopt.policies import check_sizes


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How weights, gradients and optimiser states are divided between devices.

    Attributes:
        shards: the number of devices that they are sharded over; 1 where each device has all of them.
        buckets: whether gradients are copied into buckets for the all-reduce.
    """

    shards: int = 1
    buckets: bool = False


def sharing_of(strategy: Strategy | str, *, devices: int, nodes: int) -> Sharing:
    """Return how a strategy divides a run.

    Args:
        strategy: the value of ``trainer.strategy``.
        devices: devices per node.
        nodes: the number of nodes.

    Raises:
        ConfigError: if the strategy isn't supported, or its mesh sizes don't match the devices.
    """
    if strategy == "auto":
        strategy = "ddp" if devices * nodes > 1 else SingleDeviceStrategy()
    if isinstance(strategy, str):
        if strategy not in StrategyRegistry.available_strategies():
            raise ConfigError(f"Expected trainer.strategy to be one of Lightning's, got '{strategy}'.")
        strategy = StrategyRegistry.get(strategy)
    return _sharing(strategy, devices, nodes)


@singledispatch
def _sharing(strategy: object, devices: int, nodes: int) -> Sharing:
    raise ConfigError(
        f"Expected trainer.strategy to be single-device, ddp or ModelParallelStrategy (FSDP2), got "
        f"{type(strategy).__name__}: use one of those."
    )


@_sharing.register
def _(strategy: SingleDeviceStrategy, devices: int, nodes: int) -> Sharing:
    return Sharing()


@_sharing.register
def _(strategy: DDPStrategy, devices: int, nodes: int) -> Sharing:
    return Sharing(buckets=devices * nodes > 1)


@_sharing.register
def _(strategy: ModelParallelStrategy, devices: int, nodes: int) -> Sharing:
    size = strategy._data_parallel_size
    check_sizes(size, strategy._tensor_parallel_size, processes=devices * nodes)
    return Sharing(shards=nodes if isinstance(size, str) else size)

"""Which memory a plan must fit, and how devices share a run."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import FSDP2Strategy
from pl_prefopt.planning import Sharing, device_of, sharing_of


def test_a_device_is_named_or_measured():
    assert device_of(gpu="a100-80g", memory=None).memory == 80 * 2**30
    assert device_of(gpu=None, memory="24GiB").memory == 24 * 2**30
    assert device_of(gpu=None, memory="1.5 gb").memory == 1_500_000_000


@pytest.mark.parametrize(
    ("gpu", "memory", "said"),
    [
        ("A100-80", None, "did you mean 'A100-80G'"),
        ("a100", None, "say which: A100-40G or A100-80G"),
        (None, "24", "such as 24GiB"),
        (None, "0GiB", "such as 24GiB"),
        ("T4", "24GiB", "got both"),
    ],
)
def test_what_is_no_device_is_refused(gpu, memory, said):
    with pytest.raises(ConfigError, match=said):
        device_of(gpu=gpu, memory=memory)


@pytest.mark.parametrize(
    ("strategy", "devices", "nodes", "sharing"),
    [
        ("auto", 1, 1, Sharing()),
        ("auto", 4, 1, Sharing(buckets=True)),
        ("ddp", 1, 2, Sharing(buckets=True)),
        ("ddp", 1, 1, Sharing()),
        (ModelParallelStrategy(data_parallel_size=8, tensor_parallel_size=1), 8, 1, Sharing(shards=8)),
        (ModelParallelStrategy(), 8, 2, Sharing(shards=2)),
    ],
)
def test_a_strategy_says_what_is_shared(strategy, devices, nodes, sharing):
    assert sharing_of(strategy, devices=devices, nodes=nodes) == sharing


@pytest.mark.parametrize("strategy", ["no-such", FSDPStrategy()])
def test_another_strategy_is_refused(strategy):
    with pytest.raises(ConfigError, match=r"trainer\.strategy"):
        sharing_of(strategy, devices=2, nodes=1)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((8, 1), "data_parallel_size to be .* 4 here; got 8"), ((2, 2), "tensor_parallel_size to be 1")],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, said):
    with pytest.raises(ConfigError, match=said):
        sharing_of(ModelParallelStrategy(*sizes), devices=2, nodes=2)
    strategy = FSDP2Strategy(*sizes)
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 2, 2
    with pytest.raises(ConfigError, match=said):
        strategy.setup_environment()

"""Two processes with uneven shares see the same numbers as one process with all of them."""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pl_prefopt.metrics import build_suite
from pl_prefopt.objectives import AOT, BCO, KTO, SFT, AOTUnpaired
from tests.metrics.inputs import random_inputs
from tests.objectives.batches import make_batch, make_view

SHARES = ([0, 1, 2], [3])
"""Seeds of the batches of each rank."""
IDLE = ([0, 1, 2, 3], [])
"""One rank without any batch."""


def evaluate(seeds):
    suite = build_suite("test", 1)  # all metrics, intervals too
    for seed in seeds:
        suite.update(**random_inputs(seed, prompts=3 + seed))
    return {name: value.item() for name, value in suite.compute().items()}


def kto_batch(rank):
    """Mismatched log-ratios 1, 2, 3 on rank 0 and 10 on rank 1: the mean of all is 4, of the means 6."""
    view = (make_view([[1.0], [2.0], [3.0]], [[0.0]] * 3), make_view([[10.0]], [[0.0]]))[rank]
    return make_batch([[-4.0]], [[-5.0]], [[1.0]], views={"mismatched": view})


SPLIT = ([0, 1, 2, 3, 4], [5, 6])
"""Prompts of each rank; prompt 1 has nothing to compare, and 6 has three responses."""


def on_prompts(objective, rows):
    """The losses, and the gradient of their sum, on some of seven prompts."""
    generator = torch.Generator().manual_seed(5)
    policy = -9 * torch.rand(7, 3, generator=generator)
    reference = -9 * torch.rand(7, 3, generator=generator)
    scores = torch.tensor([[1.0, 0.0, float("nan")]] * 7)
    scores[1, 0], scores[6, 2] = 0.0, -1.0
    length = torch.randint(1, 9, (7, 3), generator=generator)
    batch = make_batch(policy[rows], reference[rows], scores[rows], length=length[rows])
    loss = objective(batch).loss
    loss.sum().backward()
    return loss.detach(), batch.policy.sum.grad


LOOK_AT_ALL_RANKS = {
    "aot": lambda: AOT(beta=0.3),
    "aot_unpaired": lambda: AOTUnpaired(beta=0.3),
    "bco": lambda: BCO(beta=0.3),
    "sft": lambda: SFT(average="token"),
}


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    kto = KTO()(kto_batch(rank))
    results = {
        "uneven": evaluate(SHARES[rank]),
        "idle": evaluate(IDLE[rank]),
        "kl": kto.stats["kl"].item(),
        "loss": kto.loss.item(),
        "whole": {name: on_prompts(make(), SPLIT[rank]) for name, make in LOOK_AT_ALL_RANKS.items()},
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = evaluate([0, 1, 2, 3])
    assert all(value == value for value in alone.values())
    for rank in ranks:
        for share in ("uneven", "idle"):
            assert rank[share].keys() == alone.keys()
            for name, value in alone.items():
                assert abs(rank[share][name] - value) < 1e-5, (share, name)
        assert rank["kl"] == 4.0
        # a = 1: 1 − σ(0.1·(1 − 4))
        assert abs(rank["loss"] - torch.sigmoid(torch.tensor(0.3)).item()) < 1e-6
    for name, make in LOOK_AT_ALL_RANKS.items():
        together = [torch.cat(parts) for parts in zip(*(rank["whole"][name] for rank in ranks), strict=True)]
        for found, expected in zip(together, on_prompts(make(), list(range(7))), strict=True):
            torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")

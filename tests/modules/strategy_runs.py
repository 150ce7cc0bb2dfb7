"""Runs that two processes do together and one does alone, to be compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.modules import (
    DPOModule,
    FSDP2Strategy,
    MPPOModule,
    MRPOModule,
    PeerRewardModule,
    ReferenceFreeModule,
    SrModule,
)
from pl_prefopt.objectives import DPO, KTO, MRPO, BradleyTerry, PairMNM, SimPO, SrDPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.policies.sharding import shard
from pl_prefopt.references import FrozenModel, InitialPolicy, Reference, SyncedPolicy, precompute
from pl_prefopt.scoring import Scorer, output_layers
from tests.cli import plugins
from tests.cli.plugins import defined
from tests.modules.faults import die_while_saving, faults
from tests.modules.mean_gradients import MeanGradients
from tests.modules.split_loading import loaded
from tests.runs import LORA, make_datamodule, make_trainer, scored_rows
from tests.scoring.architectures import build
from tests.scoring.test_scorer import one_by_one, ragged_tree

PEERS = "ddp, reward models, CRM"
ROWS = 9
"""They go round neither in batches of 4 nor in 2 processes."""


def two_references() -> list[Reference]:
    return [InitialPolicy(), FrozenModel(PolicySpec(name=os.environ["TINY_MODEL"], dtype="bfloat16"))]


@dataclass
class Case:
    """A method, a policy and a strategy."""

    module: Callable[..., Any]
    objective: Callable[[], Any]
    policy: dict[str, Any]
    strategy: str
    references: Callable[[], list[Reference]] = lambda: [InitialPolicy()]
    precompute: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    exact: bool = True


ADAPTER = {"lora": LORA}
HALF = {"dtype": "bfloat16", "gradient_checkpointing": True}
CASES = {
    "ddp, MRPO, adapter": Case(MRPOModule, MRPO, ADAPTER, "ddp", two_references, precompute=True),
    "one file, DPO, adapter": Case(
        DPOModule,
        DPO,
        {**ADAPTER, **HALF},
        "file",
        trainer={"accumulate_grad_batches": 2, "precision": "bf16-mixed"},
        exact=False,
    ),
    "shards, KTO, adapter, whole checkpoint": Case(
        DPOModule,
        lambda: KTO(desirable_above=4.0),
        {**ADAPTER, "full_checkpoints": True},
        "shards",
        precompute=True,
    ),
    "shards, Sr-DPO, all weights": Case(SrModule, SrDPO, {"gradient_checkpointing": True}, "shards"),
    "shards, MPPO, all weights": Case(MPPOModule, PairMNM, {}, "shards", list),
    "shards, TDPO2, all weights": Case(DPOModule, defined(plugins.TDPO2, "TDPO2"), {}, "shards"),
    "ddp, TDPO2, adapter": Case(
        DPOModule, defined(plugins.TDPO2, "TDPO2"), {**ADAPTER, "gradient_checkpointing": True}, "ddp"
    ),
    "ddp, TR-DPO, adapter": Case(DPOModule, DPO, ADAPTER, "ddp", lambda: [SyncedPolicy(0.6, every=2)]),
    "shards, reward head, adapter": Case(
        ReferenceFreeModule, defined(plugins.BRADLEY_TERRY, "BradleyTerry"), ADAPTER, "shards", list
    ),
    # A rate that leaves out none of a batch of 4 or 2, as the first epoch reviews, but one of all 9 rows.
    PEERS: Case(partial(PeerRewardModule, keep_rate=0.9), BradleyTerry, ADAPTER, "ddp", list),
}
STRATEGIES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: "ddp",
    "file": lambda: FSDP2Strategy(2, 1, save_distributed_checkpoint=False),
    "shards": lambda: FSDP2Strategy(2, 1, save_distributed_checkpoint=True),
}


def momentum(parameters: Any) -> torch.optim.Optimizer:
    # With a state, which a checkpoint must keep; and calm, so that runs that should be equal stay so.
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


class Record(Callback):
    """Keeps each step's loss, each row's reference log-probs and, at last, the policy's, or its rewards."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.references: dict[int, list[list[float]]] = {}
        self.policy: dict[int, list[float]] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())
        none = batch.scores.new_empty((0, *batch.scores.shape))
        self._keep(self.references, batch, batch.references.get("plain", none).transpose(0, 1))

    def on_predict_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        scored, outcome = outputs
        self._keep(self.policy, batch, outcome.reward if module.reward_outputs else scored.policy.sum)

    @staticmethod
    def _keep(kept: dict[int, Any], batch: Any, values: Any) -> None:
        for position, index in enumerate(batch.index.tolist()):
            present = batch.present[position]
            if present.any():
                kept[index] = values[position][..., present].tolist()


def run(name: str, folder: Path, tiny_model: str, *, processes: int) -> dict[str, Any]:
    """Train for an epoch, save, train on from the checkpoint for another, validate and predict."""
    os.environ["TINY_MODEL"] = tiny_model
    case = CASES[name]
    record = Record()
    checkpoint = folder / f"{name}.ckpt"
    settings = {
        "devices": processes,
        "use_distributed_sampler": False,
        "gradient_clip_val": 0.5,
        **case.trainer,
    }
    for epochs in (1, 2):
        torch.manual_seed(0)
        module = case.module(PolicySpec(name=tiny_model, **case.policy), case.objective(), optimizer=momentum)
        references = ReferenceEnsemble(case.references(), case.precompute, str(folder / f"{name} cache"), 3)
        strategy = STRATEGIES[case.strategy]() if processes > 1 else "auto"
        trainer = make_trainer(folder, references, record, strategy=strategy, max_epochs=epochs, **settings)
        # In parallel, each process has half of a batch.
        data = make_datamodule(folder, scored_rows(ROWS), batch_size=4 // processes)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint if epochs == 2 else None)
        trainer.save_checkpoint(checkpoint)
    # What objectives log beside is a mean over batches, which depends on what a batch is.
    names = {"val/loss", *module.suites["val_stage"].keys()} & trainer.callback_metrics.keys()
    if not case.exact:  # rounding must not turn orders around
        names = {"val/loss", "val/margin", "val/chosen_logp", "val/rejected_logp"}
    metrics = {name: float(trainer.callback_metrics[name]) for name in names}
    trainer.predict(module, datamodule=data, return_predictions=False)
    split = any(isinstance(weight, DTensor) for weight in module.parameters())
    seen = {key: getattr(record, key) for key in ("losses", "references", "policy")}
    return {"metrics": metrics, "split": split, **seen}


def moved(folder: Path, tiny_model: str) -> dict[str, list[float]]:
    """Train on from a file that DDP wrote for one more epoch, with DDP and with the model split."""
    losses = {}
    for kind in ("ddp", "file"):
        record = Record()
        module = DPOModule(PolicySpec(name=tiny_model, **ADAPTER), DPO(), optimizer=momentum)
        settings = {"devices": 2, "use_distributed_sampler": False, "strategy": STRATEGIES[kind]()}
        for epochs in (1, 2) if kind == "ddp" else (2,):
            trainer = make_trainer(
                folder, ReferenceEnsemble([InitialPolicy()]), record, max_epochs=epochs, **settings
            )
            data = make_datamodule(folder, scored_rows(ROWS), batch_size=2)
            path = folder / "moved.ckpt"
            trainer.fit(module, datamodule=data, ckpt_path=path if epochs == 2 else None)
            if epochs == 1:
                trainer.save_checkpoint(path)
                record.losses.clear()
        losses[kind] = record.losses
    return losses


def step_means(folder: Path, tiny_model: str) -> dict[str, tuple[list[Any], list[float]]]:
    """Each step's prompts by rank, and how far its gradient is from their mean."""
    found = {}
    for kind in ("ddp", "shards"):
        for limit in (None, 120):
            watch = MeanGradients()
            module = ReferenceFreeModule(PolicySpec(name=tiny_model, **ADAPTER), SimPO(), optimizer=momentum)
            settings = {"devices": 2, "use_distributed_sampler": False, "accumulate_grad_batches": 2}
            trainer = make_trainer(
                folder, watch, strategy=STRATEGIES[kind](), limit_val_batches=0, max_epochs=2, **settings
            )
            rows, limits = scored_rows(ROWS), {"batch_size": 2, "max_tokens_per_batch": limit}
            trainer.fit(module, datamodule=make_datamodule(folder, rows, **limits))
            found[f"{kind}, {limit}"] = watch.prompts, watch.worst
    return found


# Of prompts of 6 tokens; the frequencies of all of a row's positions change above 10.
RESPONSES_OF_RANK = {
    "one side on one rank, both on the other": ([[2, 4, 3], [1]], [[2, 9, 5], [8, 1]]),
    "another side on each rank": ([[1, 3], [2, 4]], [[9, 5], [6, 12]]),
    "one rank with a single response": ([[12]], [[2, 9, 5], [8, 1, 3]]),
}


def long_rows(rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """Log-probs by a sharded LongRoPE model and by a whole one of single rows, and how gradients differ."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    found = {}
    for name, of_rank in RESPONSES_OF_RANK.items():
        whole, sharded = build("phi3_longrope"), build("phi3_longrope")
        shard(sharded, mesh, precision="32-true")
        trees = [ragged_tree([6] * len(sizes), sizes, seed=number) for number, sizes in enumerate(of_rank)]
        scored = Scorer()(sharded, trees[rank]).sum
        expected = [one_by_one(whole, tree) for tree in trees]
        scored.sum().backward()
        (sum(each.sum() for each in expected) / 2).backward()  # FSDP takes the mean over ranks
        pairs = zip(sharded.parameters(), whole.parameters(), strict=True)
        worst = max((full(own.grad) - its.grad).abs().max().item() for own, its in pairs)
        found[name] = scored.detach(), expected[rank].detach(), worst
    return found


def full(gradient: Any) -> torch.Tensor:
    gathered: torch.Tensor = gradient.full_tensor()
    return gathered


def work(rank: int, port: int, folder: Path, tiny_model: str) -> None:
    """What each of two processes does, as torchrun would start it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    # Unequal numbers of pieces and parts: whatever is gathered must be so equally often.
    output_layers.CHUNK_ELEMENTS = 400 * (5 + 20 * rank)
    precompute.ROWS_PER_SHARD = 4
    results = {name: run(name, folder, tiny_model, processes=2) for name in CASES}
    results["loaded"] = loaded(folder, tiny_model)
    results["step means"] = step_means(folder, tiny_model)
    results["long rows"] = long_rows(rank)
    results["moved"] = moved(folder, tiny_model)
    results["faults"] = faults(folder, tiny_model)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    die_while_saving(rank)

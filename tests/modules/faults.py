"""What goes wrong in one of two processes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.distributed.checkpoint.filesystem import FileSystem

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import RunError
from pl_prefopt.modules import DPOModule, FSDP2Strategy, fsdp2
from pl_prefopt.objectives import DPO
from pl_prefopt.references import InitialPolicy
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows

SAVED = "faults.ckpt"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
_trainer: Trainer | None = None


class NoNumberInTheSecond(DPO):
    """Has a loss that is NaN in the second process."""

    def forward(self, scored: Any) -> Any:
        outcome = super().forward(scored)
        if dist.get_rank() == 1:
            outcome.loss[0] *= torch.nan
        return outcome


def fit(folder: Path, tiny_model: str, objective: DPO, strategy: Any) -> Trainer:
    module = DPOModule(lora_spec(Path(tiny_model)), objective)
    settings = {"devices": 2, "use_distributed_sampler": False, "max_steps": 1, "strategy": strategy}
    trainer = make_trainer(folder, ReferenceEnsemble([InitialPolicy()]), **settings)
    trainer.fit(module, datamodule=make_datamodule(folder, scored_rows(4)))
    return trainer


def faults(folder: Path, tiny_model: str) -> dict[str, Any]:
    """Return what this process says of each fault, and what is then on the disk."""
    global _trainer
    said: dict[str, Any] = {}
    with pytest.raises(RunError) as raised:
        fit(folder, tiny_model, NoNumberInTheSecond(), "ddp")
    said["loss"] = str(raised.value)

    _trainer = trainer = fit(folder, tiny_model, DPO(), FSDP2Strategy(2, 1))
    leftover = folder / f".{SAVED}.tmp"
    leftover.mkdir(exist_ok=True)
    (leftover / "__9_0.distcp").write_bytes(b"half of what was ther")
    trainer.save_checkpoint(folder / SAVED)
    said["saved"] = contents(folder)
    second = dist.get_rank() == 1
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad).to_local()
    kept = weight.clone()
    with torch.no_grad():
        weight[:1] = torch.nan if second else weight[:1]
    said["weight"] = refused(trainer, folder)
    with torch.no_grad():
        weight.copy_(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystem, "create_stream", failing if second else FileSystem.create_stream)
        said["shard"] = refused(trainer, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp2, "publish_folder", fsdp2.publish_folder if second else failing)
        said["rename"] = refused(trainer, folder)
    dist.barrier()  # the first process has removed its draft
    said["after"] = contents(folder)
    return said


def refused(trainer: Trainer, folder: Path) -> str:
    with pytest.raises(RunError) as raised:
        trainer.save_checkpoint(folder / SAVED)
    return str(raised.value)


def failing(*args: Any) -> Any:
    raise FULL


def contents(folder: Path) -> dict[str, bytes]:
    """Everything under the checkpoint's name and beside it."""
    files = (file for file in folder.rglob("*") if SAVED in str(file) and file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def die_while_saving(rank: int) -> None:
    """Save once more; the second process is killed when it has written a part of its shard."""
    assert _trainer is not None
    create: Callable[..., Any] = FileSystem.create_stream

    def torn(self: FileSystem, path: Any, mode: str) -> Any:
        if rank == 1 and mode == "wb":
            Path(path).write_bytes(b"half of what was ther")
            os.kill(os.getpid(), signal.SIGKILL)
        return create(self, path, mode)

    FileSystem.create_stream = torn  # type: ignore[method-assign]
    _trainer.save_checkpoint(Path(_trainer.default_root_dir) / SAVED)

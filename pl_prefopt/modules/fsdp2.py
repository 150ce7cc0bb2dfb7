"""FSDP2 whose checkpoints are never half there, and never trusted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.optim import Optimizer

from pl_prefopt.errors import RunError
from pl_prefopt.files import discard, publish_folder, restore_backup, swap_directory
from pl_prefopt.modules.checkpoint_files import check_sums, is_sharded
from pl_prefopt.modules.checkpoint_io import check_finite, unwritable
from pl_prefopt.modules.plain_files import unreadable
from pl_prefopt.modules.shard_files import cause_of, check_shards
from pl_prefopt.policies import check_sizes


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy``, with checkpoints that survive a kill and run no code when read.

    Lightning writes shards over those of the checkpoint before, so that a kill meanwhile leaves neither, and
    reads them with pickle. Here all processes write a folder beside the earlier one, which it replaces once
    they are done. Both are on the disk for that time. What fails in one process, all of them say.

    It takes the same settings.
    """

    def setup_environment(self) -> None:
        """Connect the processes.

        Raises:
            ConfigError: if the sizes don't go with their number.
        """
        processes = self.num_nodes * self.num_processes
        check_sizes(self._data_parallel_size, self._tensor_parallel_size, processes=processes)
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            RunError: in all processes, if one can't write or its weights aren't finite; an earlier checkpoint
                stays as it was.
        """
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            self._in_all(path, lambda: self._first_only(self._write_file, checkpoint, path, storage_options))
            return
        draft = path.with_name(f".{path.name}.tmp")
        write = super().save_checkpoint
        try:
            self._in_all(path, lambda: self._first_only(discard, draft))  # what a killed run left
            self._in_all(path, lambda: _begin(checkpoint, path, draft))
            self._in_all(path, lambda: write(checkpoint, draft, storage_options))
            self._in_all(path, lambda: self._first_only(publish_folder, draft, path))
        except RunError:
            with suppress(OSError):
                self._first_only(discard, draft)
            raise

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; whatever is asked, only tensors and plain values are taken from it.

        Raises:
            ConfigError: if it is damaged, or holds anything else.
        """
        del weights_only
        self._first_only(restore_backup, Path(checkpoint_path))
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            check_shards(path)
            try:
                return super().load_checkpoint(path, weights_only=True)
            except CheckpointException as error:
                raise unreadable(path, cause_of(error)) from error
        return self._load_file(path)

    def _load_file(self, path: Path) -> dict[str, Any]:
        """Read a file, whichever strategy wrote it.

        In a file from one process or DDP an optimiser's states are numbered by what it trains. Lightning
        takes the numbers for those of all weights, which under an adapter are other ones.
        """
        check_sums(path)
        optimizers, self.optimizers = self.optimizers, []
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, weights_only=True)
        finally:
            self.optimizers = optimizers
        assert self.model is not None
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            set_optimizer_state_dict(
                self.model, optimizer, by_name(state, optimizer, self.model), options=whole
            )
        return checkpoint

    def _write_file(self, checkpoint: dict[str, Any], path: Path, storage_options: Any | None) -> None:
        with swap_directory(path) if path.is_dir() else nullcontext():
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)

    def _first_only(self, work: Callable[..., object], *arguments: Any) -> None:
        if self.is_global_zero:
            work(*arguments)

    def _in_all(self, path: Path, work: Callable[[], object]) -> None:
        """Do a part of saving and wait until every process has; if one failed, raise in each."""
        said = None
        try:
            work()
        except RunError as error:
            said = str(error)
        except CheckpointException as error:
            said = str(unwritable(path, cause_of(error)))
        except (OSError, RuntimeError) as error:
            said = str(unwritable(path, error))
        found: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(found, said)
        for sentence in found:
            if sentence is not None:
                raise RunError(sentence)


def by_name(state: dict[str, Any], optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """Return an optimiser's saved state with its weights' names in place of the numbers it was saved with.

    Args:
        state: as ``Optimizer.state_dict`` gives it.
        optimizer: of the same weights, in the same order.
        module: which has them.
    """
    names = {weight: name for name, weight in module.named_parameters()}
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    called = {number: names[weight] for number, weight in zip(numbers, weights, strict=True)}
    return {
        "state": {called[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [called[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def _begin(checkpoint: dict[str, Any], path: Path, draft: Path) -> None:
    check_finite(checkpoint, path)
    # Once writing has begun, the processes wait for one another: none may fail before.
    draft.mkdir(parents=True, exist_ok=True)

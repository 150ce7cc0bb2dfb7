"""FSDP2 with atomic checkpoints, read without executing code from them."""

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
    """Lightning's ``ModelParallelStrategy``, with checkpoints that survive a kill and are read safely.

    Lightning overwrites the shards of the previous checkpoint, so that a kill meanwhile destroys both, and
    reads them with pickle. Here all ranks write to a temporary folder, which replaces the previous one when
    it is complete; until then both are on disk. An error on one rank is raised on all ranks.

    It takes the same settings.
    """

    def setup_environment(self) -> None:
        """Set up the process group.

        Raises:
            ConfigError: if the mesh sizes don't match the number of processes.
        """
        processes = self.num_nodes * self.num_processes
        check_sizes(self._data_parallel_size, self._tensor_parallel_size, processes=processes)
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            RunError: on all ranks, if one can't write or its weights aren't finite; an earlier checkpoint is
                left unchanged.
        """
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            self._in_all(path, lambda: self._first_only(self._write_file, checkpoint, path, storage_options))
            return
        draft = path.with_name(f".{path.name}.tmp")
        write = super().save_checkpoint
        try:
            self._in_all(path, lambda: self._first_only(discard, draft))  # left by a killed run
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
        """Read a checkpoint, always restricted to tensors and plain values, whatever ``weights_only`` is.

        Raises:
            ConfigError: if it is damaged, or contains anything else.
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
        """Read a checkpoint file, whichever strategy wrote it.

        In a file from one process or DDP, optimiser states are numbered by trained weight. Lightning takes
        the numbers for those of all weights, which with an adapter are different.
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
        """Run ``work`` on every rank and wait for all of them; if it failed on one, raise on all."""
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
    """Return an optimiser's state dict with parameter names in place of parameter numbers.

    Args:
        state: from ``Optimizer.state_dict``.
        optimizer: an optimiser of the same weights, in the same order.
        module: the module that has the weights.
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
    # Writing is collective: errors on a single rank have to be raised before it.
    draft.mkdir(parents=True, exist_ok=True)

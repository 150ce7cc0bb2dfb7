"""FSDP2 whose checkpoints are never half there, and never trusted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException

from pl_prefopt.errors import RunError
from pl_prefopt.files import bring_back, discard, publish_folder, stepping_aside
from pl_prefopt.modules.checkpoint_files import is_sharded
from pl_prefopt.modules.checkpoint_io import check_finite, unwritable
from pl_prefopt.modules.plain_files import unreadable
from pl_prefopt.modules.shard_files import cause_of, check_shards


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy``, with checkpoints that survive a kill and run no code when read.

    Lightning writes shards over those of the checkpoint before, so that a kill meanwhile leaves neither, and
    reads them with pickle. Here all processes write a folder beside the earlier one, which it replaces once
    they are done. Both are on the disk for that time. What fails in one process, all of them say.

    It takes the same settings.
    """

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
        self._first_only(bring_back, Path(checkpoint_path))
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            check_shards(path)
        try:
            return super().load_checkpoint(path, weights_only=True)
        except CheckpointException as error:
            raise unreadable(path, cause_of(error)) from error

    def _write_file(self, checkpoint: dict[str, Any], path: Path, storage_options: Any | None) -> None:
        with stepping_aside(path) if path.is_dir() else nullcontext():
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


def _begin(checkpoint: dict[str, Any], path: Path, draft: Path) -> None:
    check_finite(checkpoint, path)
    # Once writing has begun, the processes wait for one another: none may fail before.
    draft.mkdir(parents=True, exist_ok=True)

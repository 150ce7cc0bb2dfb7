"""Safe reading and writing of checkpoint files: atomic writes, and no code from files is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.distributed.tensor import DTensor

from pl_prefopt.errors import RunError
from pl_prefopt.files import atomic_write
from pl_prefopt.modules.checkpoint_files import read_checkpoint
from pl_prefopt.modules.plain_files import reason

_BARE = "pl_prefopt_bare_weights"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoint files atomically, and reads them without executing code from them.

    Lightning's own plugin writes to the system's temporary folder and moves the file from there, which across
    file systems is a copy that can be interrupted half way.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, or bare weights, as a process that ``ddp_spawn`` started does for its parent.

        Raises:
            RunError: if it can't be written or its weights aren't finite; an earlier one is left unchanged.
        """
        if "://" in str(path):  # an object store, where a file appears at once anyway
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if "state_dict" not in checkpoint:
            checkpoint = {"state_dict": checkpoint, _BARE: True}
        check_finite(checkpoint, path)
        try:
            with atomic_write(Path(path)) as draft, draft.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps what the file system says
            raise unwritable(path, error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, always restricted to tensors and plain values, whatever ``weights_only`` is."""
        del weights_only
        checkpoint = read_checkpoint(Path(path), map_location)
        weights: dict[str, Any] = checkpoint["state_dict"]
        return weights if _BARE in checkpoint else checkpoint


def unwritable(path: str | Path, error: BaseException) -> RunError:
    """Return the error for a checkpoint that can't be written."""
    return RunError(
        f"the checkpoint {path} can't be written ({reason(error)}): the previous one, if any, is unchanged; "
        "free disk space or name another --run_dir, and resume with `--ckpt_path last`"
    )


def check_finite(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to overwrite a checkpoint with non-finite weights.

    Of sharded weights, the rank's own shard is checked.

    Raises:
        RunError: naming the weight.
    """
    for name, weight in checkpoint["state_dict"].items():
        held = weight.to_local() if isinstance(weight, DTensor) else weight
        if not torch.isfinite(held).all():
            raise RunError(
                f"the weight '{name}' is not finite at step {checkpoint.get('global_step')}, so {path} was "
                "not written, and the previous checkpoint, if any, is unchanged: lower the learning rate "
                "and resume from it with `--ckpt_path last`"
            )

"""Reading and writing checkpoint files, so that a good one is never lost and a bad one never trusted."""

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
    """Lightning's checkpoint files, written whole or not at all, and read without running code from them.

    Lightning's own plugin writes to the system's temporary folder and moves the file from there, which on
    another file system is a copy that can break off half way.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, or bare weights, as a process that ``ddp_spawn`` started does for its parent.

        Raises:
            RunError: if it can't be written or its weights aren't finite; an earlier one stays as it was.
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
        """Read what was saved; whatever is asked, only tensors and plain values are taken from it."""
        del weights_only
        checkpoint = read_checkpoint(Path(path), map_location)
        weights: dict[str, Any] = checkpoint["state_dict"]
        return weights if _BARE in checkpoint else checkpoint


def unwritable(path: str | Path, error: BaseException) -> RunError:
    """Return the error for a checkpoint that can't be written."""
    return RunError(
        f"the checkpoint {path} can't be written ({reason(error)}): the one before it, if any, is as it was; "
        "make room or name another --run_dir, and go on with `--ckpt_path last`"
    )


def check_finite(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to put weights that are no numbers in the place of good ones.

    Of weights that are split between processes, this looks at the process's own part.

    Raises:
        RunError: naming the weight.
    """
    for name, weight in checkpoint["state_dict"].items():
        held = weight.to_local() if isinstance(weight, DTensor) else weight
        if not torch.isfinite(held).all():
            raise RunError(
                f"the weight '{name}' is not finite at step {checkpoint.get('global_step')}, so {path} was "
                "not written, and the checkpoint before it, if any, is as it was: lower the learning rate "
                "and go on from there with `--ckpt_path last`"
            )

"""Reading checkpoints: a file, or the folder of shards that a run with split weights leaves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError

_REST = "meta.pt"  # Lightning's name for what is no weight
_PREFIX = "state_dict."


class CheckpointHead(NamedTuple):
    """What a checkpoint holds, without its weights.

    Attributes:
        rest: everything else, as Lightning saved it.
        shapes: of each weight, by name.
    """

    rest: dict[str, Any]
    shapes: dict[str, torch.Size]


def is_sharded(path: Path) -> bool:
    """Tell whether ``path`` is a folder of shards."""
    return (path / _REST).is_file()


def read_checkpoint(path: Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint file. No code in it is run.

    Args:
        path: the file.
        map_location: where its tensors go.
        mmap: leave tensors in the file until they are looked at.

    Raises:
        ConfigError: if there is no such file, or it is damaged or no checkpoint.
    """
    if not path.is_file():
        raise ConfigError(f"Expected a checkpoint, but {path} is missing, or is no checkpoint.")
    checkpoint = _plain(path, map_location, mmap=mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ConfigError(f"{path} is no checkpoint of a run: name one that `prefopt fit` wrote.")
    return checkpoint


def read_head(path: Path) -> CheckpointHead:
    """Read what a checkpoint holds, in one process and without a trainer.

    Raises:
        ConfigError: if there is none, or it is damaged or no checkpoint.
    """
    if is_sharded(path):
        rest = _plain(path / _REST, "cpu")
        return CheckpointHead(rest, {name: entry.size for name, entry in _entries(path).items()})
    rest = read_checkpoint(path, mmap=True)
    return CheckpointHead(rest, {name: weight.shape for name, weight in rest.pop("state_dict").items()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's weights, whole and on the CPU, in one process.

    Raises:
        ConfigError: if there is none, or it is damaged or no checkpoint.
    """
    if not is_sharded(path):
        weights: dict[str, Tensor] = read_checkpoint(path)["state_dict"]
        return weights
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    whole = {
        _PREFIX + name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _entries(path).items()
    }
    load(whole, storage_reader=FileSystemReader(path), no_dist=True)
    return {name.removeprefix(_PREFIX): weight for name, weight in whole.items()}


def _entries(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    found: dict[str, Any] = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name.removeprefix(_PREFIX): entry for name, entry in found.items() if name.startswith(_PREFIX)}


def _plain(path: Path, map_location: Any, *, mmap: bool = False) -> Any:
    """Return what a file of ``torch.save`` holds, if that is tensors and plain values."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"The checkpoint {path} is damaged, or holds code instead of plain weights, and was not loaded: "
            "name one that `prefopt fit` wrote."
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, AttributeError) as error:
        raise ConfigError(
            f"The checkpoint {path} can't be read ({reason(error)}): name another one, such as best.ckpt."
        ) from error


def reason(error: BaseException) -> str:
    """Return in a line why a file can't be read or written: torch wraps what the file system says."""
    cause = error
    while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    text = (cause.strerror or "") if isinstance(cause, OSError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]

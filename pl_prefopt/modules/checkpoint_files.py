"""Reading checkpoints: a file, or the folder of shards that a run with split weights leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def read_head(path: Path) -> CheckpointHead:
    """Read what a checkpoint holds, in one process and without a trainer."""
    if is_sharded(path):
        rest = torch.load(path / _REST, map_location="cpu", weights_only=True)
        return CheckpointHead(rest, {name: entry.size for name, entry in _entries(path).items()})
    rest = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return CheckpointHead(rest, {name: weight.shape for name, weight in rest.pop("state_dict").items()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's weights, whole and on the CPU, in one process."""
    if not is_sharded(path):
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
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

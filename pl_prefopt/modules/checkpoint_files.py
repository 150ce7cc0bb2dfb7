"""Reading checkpoints: a file, or the folder of shards that a run with split weights leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules.plain_files import load_plain, unreadable
from pl_prefopt.modules.shard_files import REST, read_index, read_shards, tensors_of

ADAPTED = "pl_prefopt_adapted"
"""In a checkpoint that ``prefopt adapt`` wrote: true."""

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
    return (path / REST).is_file()


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
    checkpoint = load_plain(path, map_location=map_location, mmap=mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ConfigError(f"{path} is no checkpoint of a run: name one that `prefopt fit` wrote.")
    if not mmap:
        check_sums(path)
    return checkpoint


def check_sums(path: Path) -> None:
    """Look at the checksums that torch writes into a file and does not read.

    Raises:
        ConfigError: if one is wrong.
    """
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise unreadable(path, ValueError(f"the checksum of {damaged} in it is wrong"))


def read_head(path: Path) -> CheckpointHead:
    """Read what a checkpoint holds, in one process and without a trainer.

    Raises:
        ConfigError: if there is none, or it is damaged or no checkpoint.
    """
    if is_sharded(path):
        entries = tensors_of(read_index(path), _PREFIX)
        return CheckpointHead(load_plain(path / REST), {name: entry.size for name, entry in entries.items()})
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
    return read_shards(path, _PREFIX)

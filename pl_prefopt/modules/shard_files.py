"""Reading a folder of shards without running code from it.

torch unpickles two things in such a folder whatever it is told: the index, and the objects stored with the
tensors, such as an optimiser's learning rate. Both are looked at here before torch sees them.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules.plain_files import load_plain, unreadable

REST = "meta.pt"
"""What is neither weight nor optimiser, in Lightning's name for it."""
_INDEX = ".metadata"  # torch's name
_HELD = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "torch.serialization": ("_get_layout",),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),  # as Python 3.13 writes it
}
"""All that an index names, by module."""


class _RefusedError(Exception):
    """A name that no index needs."""


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Only whole names count: with a dot, one could get from a module that is listed to all it imports.
        if name not in _HELD.get(module, ()):
            raise _RefusedError(f"{module}.{name}")
        return super().find_class(module, name)


def check_shards(folder: Path) -> None:
    """Refuse a folder of shards in which anything but tensors and plain values would be unpickled.

    Raises:
        ConfigError: naming the file.
    """
    index = read_index(folder)
    for item, place in index.storage_data.items():
        if isinstance(index.state_dict_metadata.get(item.fqn), TensorStorageMetadata):
            continue  # torch takes nothing but a tensor for it
        path = folder / place.relative_path
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                held = io.BytesIO(file.read(place.length))
        except OSError as error:
            raise unreadable(path, error) from error
        load_plain(path, held)
    load_plain(folder / REST)


def read_index(folder: Path) -> Metadata:
    """Return what a folder of shards holds, and where.

    Raises:
        ConfigError: if the index is missing, damaged, or no such index.
    """
    path = folder / _INDEX
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
        if not isinstance(index, Metadata):
            raise TypeError(f"a {type(index).__name__} is no index")
        packed = [place for place in index.storage_data.values() if place.transform_descriptors]
    except _RefusedError as error:
        raise ConfigError(
            f"{path} names {error}, which could be code and is in no checkpoint's index, and was not loaded: "
            "name a checkpoint that `prefopt fit` wrote."
        ) from error
    except Exception as error:  # whatever pickle makes of a damaged file
        raise unreadable(path, error) from error
    if packed:  # which would be unpickled only after it is unpacked
        raise ConfigError(f"{path} lists packed shards: name a checkpoint that `prefopt fit` wrote.")
    return index


def read_shards(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, by the rest of their names, whole and on the CPU.

    Raises:
        ConfigError: if they can't be read.
    """
    entries = tensors_of(read_index(folder), prefix)
    whole = {
        prefix + name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
    }
    try:
        load(whole, storage_reader=FileSystemReader(folder), no_dist=True)
    except CheckpointException as error:
        raise unreadable(folder, cause_of(error)) from error
    return {name.removeprefix(prefix): weight for name, weight in whole.items()}


def tensors_of(index: Metadata, prefix: str) -> dict[str, TensorStorageMetadata]:
    """Return the entries of the tensors whose names begin with ``prefix``, by the rest of their names."""
    return {
        name.removeprefix(prefix): entry
        for name, entry in index.state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def cause_of(error: CheckpointException) -> BaseException:
    """Return what went wrong first, in whichever process."""
    return next((failure for failure, _ in error.failures.values()), error)

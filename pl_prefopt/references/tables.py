"""Precomputed log-probs: one file per reference, split and view."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pl_prefopt.data import PreferenceDataset
from pl_prefopt.errors import DataError
from pl_prefopt.files import atomic_write
from pl_prefopt.types import PLAIN
from pl_prefopt.views import View

_CHECKSUM = "checksum"


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """The log-probs of one dataset's responses in one view, by one reference.

    The file's name carries a hash of the tokenised rows and of the view, so that other data never
    finds it. It holds ``log_probs``, float32 [rows, R], NaN where a row has fewer responses.

    Attributes:
        folder: the reference's folder.
        dataset: the rows.
        view: the view's name.
        rendering: the view's fingerprint.
    """

    folder: Path
    dataset: PreferenceDataset
    view: str
    rendering: str

    @classmethod
    def all_of(cls, folder: Path, dataset: PreferenceDataset, views: Mapping[str, View]) -> list[TableFile]:
        """Return the table files of ``dataset`` for the plain view and for ``views``."""
        renderings = {PLAIN: PLAIN} | {name: view.fingerprint for name, view in views.items()}
        return [
            cls(folder=folder, dataset=dataset, view=name, rendering=rendering)
            for name, rendering in renderings.items()
        ]

    @property
    def path(self) -> Path:
        """The path of the finished table."""
        key = hashlib.sha256(f"{self.dataset.tokens_fingerprint}|{self.rendering}".encode()).hexdigest()[:16]
        return self.folder / f"{self.dataset.split}-{self.view}-{key}.safetensors"

    def part(self, number: int) -> Path:
        """Return the path of part ``number`` of an unfinished table."""
        return self.path.with_suffix(".parts") / f"{number:06d}.safetensors"

    def read(self) -> Tensor:
        """Return float32 [rows, R].

        Raises:
            DataError: if the file is missing, damaged, or of other data.
        """
        if not self.path.is_file():
            raise DataError(
                f"Expected log-probs of these {len(self.dataset)} {self.dataset.split} rows (view "
                f"'{self.view}') in {self.path}, but {_present(self.folder)}: data, template, tokeniser or "
                "length limits differ from when they were computed; use the reference itself with "
                "references.precompute: true to compute them again."
            )
        table = read_tensors(self.path).get("log_probs")
        if table is None or table.dim() != 2 or len(table) != len(self.dataset):
            held = "no log-probs" if table is None else f"a table {list(table.shape)}"
            raise DataError(f"{self.path} holds {held}, expected {len(self.dataset)} rows: delete it.")
        return table


class DamagedTableError(DataError):
    """A corrupted file of log-probs."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, and verify the checksum of one that ``write_tensors`` wrote.

    Raises:
        DamagedTableError: if it is corrupted.
        DataError: if it can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise DataError(f"{path} can't be read ({error}); fetch it again or compute it anew.") from error
    except SafetensorError as error:
        raise DamagedTableError(f"{path} is damaged ({error}); fetch it again or compute it anew.") from error
    # A table without notes was not written here, and has no checksum to verify.
    if notes and notes.get(_CHECKSUM) != _checksum(tensors):
        raise DamagedTableError(f"{path} is damaged (by its checksum); fetch it again or compute it anew.")
    return tensors


def read_cached(path: Path) -> dict[str, Tensor] | None:
    """Read a file that can be recomputed; ``None`` if it is missing or, with a warning, corrupted."""
    if not path.is_file():
        return None
    try:
        return read_tensors(path)
    except DamagedTableError as error:
        rank_zero_warn(f"A cached table is computed anew: {error}")
        return None


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    notes = notes | {_CHECKSUM: _checksum(tensors)}
    # Several runs may fill the same table, so each has its own temporary file.
    with atomic_write(path, owner=f".{os.getpid()}") as draft:
        # Not by `save_file`, whose error on a full disk is no OSError and names no file.
        draft.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata=notes))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a CRC-32 of names, shapes and bytes."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().numpy().tobytes(), found)
    return f"{found:08x}"


def stack_ragged(parts: list[tuple[Tensor, Tensor]], rows: int) -> Tensor:
    """Assemble parts (row numbers [N], values [N, R_i, ...]) into one [rows, R, ...], with NaN elsewhere.

    >>> second = (torch.tensor([1]), torch.tensor([[2.0, 3.0]]))
    >>> first = (torch.tensor([0]), torch.tensor([[1.0]]))
    >>> stack_ragged([second, first], rows=2)
    tensor([[1., nan],
            [2., 3.]])
    """
    width, rest = max(values.shape[1] for _, values in parts), parts[0][1].shape[2:]
    table = torch.full((rows, width, *rest), torch.nan, dtype=torch.float32)
    for index, values in parts:
        table[index, : values.shape[1]] = values
    return table


def _present(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
    return f"the folder holds only {', '.join(names)}" if names else "the folder holds no table"

"""A reference from a table of precomputed log-probs, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references.base import Datasets, Footprint, PolicyHost, Reference
from pl_prefopt.references.tables import TableFile
from pl_prefopt.types import PreferenceBatch


class PrecomputedTable(Reference):
    """Log-probs that a reference's ``precompute`` wrote, on this machine or another.

    Args:
        folder: the folder with one reference's tables.
    """

    precomputable: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = True

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._tables: dict[tuple[str, str], Tensor] = {}

    def check(self, policy: PolicySpec) -> None:
        """Raise a ``ConfigError`` if there is no such folder."""
        if not Path(self.folder).is_dir():
            raise ConfigError(
                f"Expected PrecomputedTable.folder to be a folder of tables, but '{self.folder}' is none."
            )

    def fingerprint(self, policy: PolicySpec) -> str:
        """Return the folder's name, which is the fingerprint of the reference that wrote it."""
        return Path(self.folder).name

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return an empty footprint: a few bytes per response are neglected."""
        return Footprint(scores=False)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Read the tables of ``datasets`` to the policy's device; they have a few numbers per row."""
        for split, dataset in datasets.items():
            for file in TableFile.all_of(Path(self.folder), dataset, host.views):
                self._tables[split, file.view] = torch.nan_to_num(file.read()).to(host.device)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        table = self._tables.get((batch.split, view))
        if table is None:
            raise ContractError(
                f"PrecomputedTable reads its rows from the datamodule, which has no split '{batch.split}': "
                "train with PreferenceDataModule."
            )
        return table[batch.index, : batch.trees[view].response_ids.shape[1]]

    def release(self) -> None:
        """Free the tables."""
        self._tables.clear()

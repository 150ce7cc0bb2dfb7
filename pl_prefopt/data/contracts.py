"""What the data module and the module that is trained know of each other."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

from lightning.pytorch import LightningDataModule, Trainer

from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.views import View


class RowNeeds(Protocol):
    """What a module asks of the rows; ``pl_prefopt.objectives.Needs`` is one."""

    @property
    def views(self) -> Mapping[str, View]:
        """The views to tokenise besides the rows themselves, by name."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that each row must have."""


class RowReader(Protocol):
    """What ``PreferenceDataModule`` asks of the LightningModule in the same trainer.

    ``PreferenceModule`` is one. A module that lacks a part of it gets rows without views, and must be given
    ``data.tokenizer``.
    """

    @property
    def needs(self) -> RowNeeds:
        """What the rows must have."""

    def needed_by(self, column: str) -> str:
        """Return who asked for a column, for messages."""

    def load_tokenizer(self) -> Any:
        """Return the tokeniser of the model that is trained."""


class RowSource(Protocol):
    """What ``PreferenceModule`` and ``ReferenceEnsemble`` ask of the data module in the same trainer.

    ``PreferenceDataModule`` is one. Without one, as with plain loaders, rows are checked batch by batch.
    """

    @property
    def datasets(self) -> Mapping[str, PreferenceDataset]:
        """The rows of each split that is set up."""

    @property
    def prompts_per_batch(self) -> float:
        """Training prompts per batch and device as a rule."""


def is_row_reader(module: object) -> TypeGuard[RowReader]:
    """Whether a module is a ``RowReader``."""
    return _has(module, "needs", "needed_by", "load_tokenizer")


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """Return the data module of the trainer's current command.

    ``trainer.datamodule`` is still that of an earlier command where this one was given loaders.
    """
    selector = trainer._data_connector._datahook_selector
    return None if selector is None else selector.datamodule


def row_source(trainer: Trainer) -> RowSource | None:
    """Return where the rows of the trainer's current command come from, if its data module tells."""
    found: Any = datamodule_of(trainer)
    return found if _has(found, "datasets", "prompts_per_batch") else None


def _has(instance: object, *names: str) -> bool:
    # Not isinstance with a runtime protocol, which on Python 3.11 computes each property.
    return all(inspect.getattr_static(instance, name, None) is not None for name in names)

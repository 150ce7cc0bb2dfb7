"""The interfaces between the data module and the LightningModule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

from lightning.pytorch import LightningDataModule, Trainer

from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.views import View


class RowNeeds(Protocol):
    """What a module requires of the rows; ``pl_prefopt.objectives.Needs`` implements it.

    It may also have ``names``: those of the columns whose names, such as annotators', arrive as numbers.
    """

    @property
    def views(self) -> Mapping[str, View]:
        """The views to tokenise in addition to the plain rows, by name."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that each row must have."""


class RowReader(Protocol):
    """What ``PreferenceDataModule`` requires of the LightningModule in the same trainer.

    ``PreferenceModule`` implements it. A module that lacks a part of it gets rows without views, and
    ``data.tokenizer`` must be set.
    """

    @property
    def needs(self) -> RowNeeds:
        """The requirements on the rows."""

    def needed_by(self, column: str) -> str:
        """Return the name of the component that requires a column, for messages."""

    def load_tokenizer(self) -> Any:
        """Return the tokeniser of the policy."""


class RowSource(Protocol):
    """What ``PreferenceModule`` and ``ReferenceEnsemble`` require of the data module in the same trainer.

    ``PreferenceDataModule`` implements it. Without one, as with plain loaders, rows are checked batch by
    batch.
    """

    @property
    def datasets(self) -> Mapping[str, PreferenceDataset]:
        """The datasets of the splits that are set up, by split."""

    @property
    def prompts_per_batch(self) -> float:
        """The mean number of training prompts per batch and device."""


def is_row_reader(module: object) -> TypeGuard[RowReader]:
    """Whether a module is a ``RowReader``."""
    return _has(module, "needs", "needed_by", "load_tokenizer")


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """Return the data module of the trainer's current call (``fit``, ``validate``, ...).

    ``trainer.datamodule`` may still be that of an earlier call if the current one was given loaders.
    """
    selector = trainer._data_connector._datahook_selector
    return None if selector is None else selector.datamodule


def row_source(trainer: Trainer) -> RowSource | None:
    """Return the data module of the trainer's current call if it is a ``RowSource``."""
    found: Any = datamodule_of(trainer)
    return found if _has(found, "datasets", "prompts_per_batch") else None


def _has(instance: object, *names: str) -> bool:
    # isinstance with a runtime protocol would evaluate each property on Python 3.11.
    return all(inspect.getattr_static(instance, name, None) is not None for name in names)

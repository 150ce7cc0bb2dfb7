"""What a reward head changes between epochs, such as the groups of users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer

from pl_prefopt.data import PreferenceDataset
from pl_prefopt.errors import ConfigError
from pl_prefopt.types import ScoredBatch

if TYPE_CHECKING:
    from pl_prefopt.modules.base import PreferenceModule


def check_epochs(trainer: Trainer, before: int, what: str) -> None:
    """Refuse a run that ends before the epoch in which something would act for the first time.

    Runs whose length is given by ``trainer.max_steps`` alone, and ``fast_dev_run``, pass.

    Args:
        trainer: the run's trainer.
        before: the number of epochs in which it doesn't act.
        what: the first half of the error's sentence, which says what acts when.

    Raises:
        ConfigError: if ``trainer.max_epochs`` is at most ``before``.
    """
    epochs = trainer.max_epochs
    if epochs in (None, -1) or epochs > before or getattr(trainer, "fast_dev_run", False):
        return
    raise ConfigError(
        f"{what}, but trainer.max_epochs is {epochs}: set trainer.max_epochs to {before + 1} or more."
    )


@torch.no_grad()
def scored_anew(
    module: PreferenceModule, trainer: Trainer, rows: PreferenceDataset, batch_size: int
) -> Iterator[ScoredBatch]:
    """Score this rank's share of ``rows`` without gradient and dropout, in as many batches on every rank.

    Args:
        module: the module, whose training mode is restored afterwards.
        trainer: its trainer.
        rows: the rows of the training split.
        batch_size: rows per forward pass.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        for index in _shares(len(rows), batch_size, trainer.global_rank, trainer.world_size):
            yield module.score(rows.batch(index).to(module.device))
    finally:
        for part in training:
            part.training = True


def _shares(rows: int, batch_size: int, rank: int, ranks: int) -> Iterator[Sequence[int]]:
    """Yield the row numbers of each of a rank's batches; ``~i`` fills up, as in ``PreferenceDataset.batch``.

    >>> list(_shares(5, 2, 1, 2))
    [[1, 3], [-1]]
    """
    own = list(range(rank, rows, ranks))
    own += [~0] * (-(-rows // ranks) - len(own))
    for start in range(0, len(own), batch_size):
        yield own[start : start + batch_size]

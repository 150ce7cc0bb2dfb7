"""One prompt with given numbers, to try objectives on: for docstrings, notebooks and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from pl_prefopt.requests import REWARD
from pl_prefopt.types import Column, ResponseLogProbs, ScoredBatch, ViewLogProbs


def example(
    policy: Sequence[float],
    *references: Sequence[float],
    scores: Sequence[float] = (1.0, 0.0),
    lengths: Sequence[int] | None = None,
    columns: Mapping[str, Column] | None = None,
) -> ScoredBatch:
    """Return a batch of one prompt.

    Args:
        policy: log π_θ(y|x) of each response.
        references: log π_ref(y|x) of each response, once per reference.
        scores: of each response.
        lengths: the number of tokens of each response; 4 by default.
        columns: the row's further columns.

    Examples:
        >>> from pl_prefopt.objectives import DPO
        >>> outcome = DPO(beta=0.5)(example([-7.0, -9.0], [-10.0, -10.0]))
        >>> outcome.loss, outcome.reward
        (tensor([0.3133]), tensor([[1.5000, 0.5000]]))
    """
    sums = torch.tensor([policy])
    return ScoredBatch(
        policy=ResponseLogProbs(
            sum=sums, length=torch.tensor([lengths]) if lengths else torch.full(sums.shape, 4)
        ),
        references=torch.tensor(references).unsqueeze(1) if references else sums.new_empty((0, *sums.shape)),
        scores=torch.tensor([scores]),
        present=torch.ones(sums.shape, dtype=torch.bool),
        graded=torch.tensor([True]),
        columns=columns or {},
    )


def rewarded(
    rewards: Sequence[float],
    *,
    scores: Sequence[float] = (1.0, 0.0),
    log_probs: Sequence[float] | None = None,
    columns: Mapping[str, Column] | None = None,
) -> ScoredBatch:
    """Return a batch of one prompt whose responses have these rewards, as a head gives them.

    Examples:
        >>> from pl_prefopt.objectives import BradleyTerry
        >>> BradleyTerry()(rewarded([0.0, 0.0])).loss
        tensor([0.6931])
    """
    return embedded([[reward] for reward in rewards], scores=scores, log_probs=log_probs, columns=columns)


def embedded(
    outputs: Sequence[Sequence[float]],
    *,
    scores: Sequence[float] = (1.0, 0.0),
    log_probs: Sequence[float] | None = None,
    columns: Mapping[str, Column] | None = None,
) -> ScoredBatch:
    """Return a batch of one prompt for whose responses a head gives these outputs.

    Args:
        outputs: J numbers per response, such as an embedding.
        scores: of each response.
        log_probs: log π_θ(y|x) of each response of 4 tokens, for objectives that read them.
        columns: the row's further columns.
    """
    batch = example(log_probs or [torch.nan] * len(outputs), scores=scores, columns=columns)
    return dataclasses.replace(batch, outputs={REWARD: torch.tensor([outputs])})


def with_view(
    batch: ScoredBatch, name: str, policy: Sequence[float], *references: Sequence[float]
) -> ScoredBatch:
    """Return an example with a second view.

    Args:
        batch: the example.
        name: the view's name.
        policy: log π_θ of each response in the view, of 4 tokens each.
        references: log π_ref of each, once per reference.
    """
    sums = torch.tensor([policy])
    view = ViewLogProbs(
        policy=ResponseLogProbs(sum=sums, length=torch.full(sums.shape, 4)),
        references=torch.tensor(references).unsqueeze(1) if references else sums.new_empty((0, *sums.shape)),
        present=torch.ones(sums.shape, dtype=torch.bool),
    )
    return dataclasses.replace(batch, views={**batch.views, name: view})

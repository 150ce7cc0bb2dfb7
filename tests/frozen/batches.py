"""Fixed ragged float64 batches, from arithmetic alone: no random generator can change them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pl_prefopt.types import ResponseLogProbs, ScoredBatch, ViewLogProbs

NAN = float("nan")
PRIME = 10007
"""Squares modulo it look random, and integers are exact everywhere."""
SCORES = (
    (7.0,),
    (1.0, 10.0),
    (4.0, 4.0, 9.0),
    (6.0, 2.0, NAN, 8.0),
    (3.0, 3.0, 3.0, 3.0, 3.0),
    (1.0, 2.5, 4.0, 5.5, 7.0, 10.0),
    (NAN, 9.0, 1.0, 9.0, 1.0, 5.0, NAN),
    (8.0, 3.0, 5.0, 5.0, 10.0, 1.0, 2.0, 7.5),
)
"""Rows of one to eight responses: ties, unknown scores, and both ends of the range."""


def frozen_batch(*, references: int, views: Mapping[str, object]) -> ScoredBatch:
    """Return the lists of ``SCORES``, each view present where the rows' own responses are.

    Args:
        references: K.
        views: the second views that the objective asks for.
    """
    width = max(map(len, SCORES))
    scores = torch.tensor([[*row, *[NAN] * (width - len(row))] for row in SCORES], dtype=torch.float64)
    present = torch.tensor([[column < len(row) for column in range(width)] for row in SCORES])
    length = torch.where(present, 1 + (17 * torch.arange(present.numel()).view_as(present)) % 9, 0)

    def log_probs(stream: int) -> Tensor:
        """Sums of log-probs between -0.05 and -3.05 per token."""
        place = torch.arange(1, present.numel() + 1).view_as(present) + 101 * stream
        return -length * (0.05 + 3 * ((31 * place**2 + 17 * place) % PRIME).double() / PRIME)

    def stacked(first: int, count: int) -> Tensor:
        return (
            torch.stack([log_probs(first + k) for k in range(count)])
            if count
            else scores.new_empty((0, *scores.shape))
        )

    def view(number: int) -> ViewLogProbs:
        policy = ResponseLogProbs(sum=log_probs(10 * number), length=length)
        return ViewLogProbs(policy=policy, references=stacked(10 * number + 1, references), present=present)

    return ScoredBatch(
        policy=ResponseLogProbs(sum=log_probs(0).requires_grad_(), length=length),
        references=stacked(1, references),
        scores=scores,
        present=present,
        graded=torch.ones(len(SCORES), dtype=torch.bool),
        views={name: view(number) for number, name in enumerate(views, start=1)},
    )

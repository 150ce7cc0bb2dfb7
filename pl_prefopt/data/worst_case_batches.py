"""Batches that need the most memory, for ``prefopt plan``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.types import PLAIN, PreferenceBatch, TokenTree


def largest_batch(dataset: PreferenceDataset, batches: Iterable[Sequence[int]]) -> PreferenceBatch:
    """Return the batch with the most tokens, each prompt counted once.

    Args:
        dataset: the rows.
        batches: lists of row numbers, one per batch.
    """
    lengths = dataset.lengths
    return dataset.batch(max(batches, key=lambda rows: sum(int(lengths[row]) for row in rows)))


def full_batch(
    *, rows: int, responses: int, prompt: int, response: int, views: Iterable[str]
) -> PreferenceBatch:
    """Return a batch of the given size without padding, whose prompts share no prefix.

    Args:
        rows: B, the number of prompts.
        responses: R, the number of responses per prompt.
        prompt: tokens per prompt.
        response: tokens per response.
        views: the views that it has in addition to the plain tree.
    """
    tree = TokenTree(
        prompt_ids=torch.arange(rows).unsqueeze(1).expand(rows, prompt).contiguous(),
        prompt_mask=torch.ones(rows, prompt, dtype=torch.bool),
        response_ids=torch.zeros(rows, responses, response, dtype=torch.int64),
        response_mask=torch.ones(rows, responses, response, dtype=torch.bool),
        counted_mask=torch.ones(rows, responses, response, dtype=torch.bool),
    )
    return PreferenceBatch(
        index=torch.arange(rows),
        split="train",
        rows=[],
        present=torch.ones(rows, responses, dtype=torch.bool),
        scores=torch.zeros(rows, responses),
        graded=torch.ones(rows, dtype=torch.bool),
        trees=dict.fromkeys((PLAIN, *views), tree),
    )

"""Collating encoded rows of different lengths into one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pl_prefopt.data.renderer import EncodedRow
from pl_prefopt.types import TokenTree


def collate(encoded: Sequence[EncodedRow]) -> TokenTree:
    """Collate rows into padded tensors: padded on the right with token 0, and masked.

    Args:
        encoded: B >= 1 rows.

    Returns:
        A tree of B prompts, with R and T as large as the largest row needs.
    """
    rows = len(encoded)
    prompts = max(len(row.prompt_ids) for row in encoded)
    responses = max(len(row.response_ids) for row in encoded)
    tokens = max((len(ids) for row in encoded for ids in row.response_ids), default=1)
    prompt_ids, prompt_mask = _empty(rows, prompts, dtype=np.int64), _empty(rows, prompts)
    response_ids = _empty(rows, responses, tokens, dtype=np.int64)
    response_mask, counted = _empty(rows, responses, tokens), _empty(rows, responses, tokens)
    for b, row in enumerate(encoded):
        length = len(row.prompt_ids)
        prompt_ids[b, :length] = row.prompt_ids
        prompt_mask[b, :length] = True
        for r, (ids, flags) in enumerate(zip(row.response_ids, row.counted, strict=True)):
            response_ids[b, r, : len(ids)] = ids
            response_mask[b, r, : len(ids)] = True
            counted[b, r, : len(ids)] = flags
    return TokenTree(
        prompt_ids=torch.from_numpy(prompt_ids),
        prompt_mask=torch.from_numpy(prompt_mask),
        response_ids=torch.from_numpy(response_ids),
        response_mask=torch.from_numpy(response_mask),
        counted_mask=torch.from_numpy(counted),
    )


def align_with_plain(plain: TokenTree, view: TokenTree) -> TokenTree:
    """Return ``view`` with the length of the prefix that each of its prompts shares with the plain prompt.

    Args:
        plain: the plain tree of a batch, on the CPU.
        view: the tree of the same rows in another rendering.
    """
    both = min(plain.prompt_ids.shape[1], view.prompt_ids.shape[1])
    same = (plain.prompt_ids[:, :both] == view.prompt_ids[:, :both]) & plain.prompt_mask[:, :both]
    lengths = same.cumprod(dim=1).sum(dim=1).tolist()
    # The last prompt token predicts the first response token, so it is always computed.
    shared = [min(length, most - 1) for length, most in zip(lengths, view.prompt_lengths, strict=True)]
    return dataclasses.replace(view, shared_with_plain=tuple(shared))


def _empty(*shape: int, dtype: type = np.bool_) -> npt.NDArray[Any]:
    return np.zeros(shape, dtype=dtype)

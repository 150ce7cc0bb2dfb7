"""The steps of responses: lines, found from their tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pl_prefopt.types import TokenTree


class LineSteps:
    """Numbers the lines with visible text of each response, from 0.

    A token with a line break ends a line, and the next token with visible text begins one. Special tokens,
    such as the end token, are not visible. Each assistant turn begins a line.

    Args:
        tokenizer: the tokeniser of the token trees.
    """

    def __init__(self, tokenizer: Any) -> None:
        ids = [[number] for number in range(len(tokenizer))]
        texts = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        special = set(tokenizer.all_special_ids)
        self._breaks = torch.tensor(["\n" in text for text in texts])
        self._visible = torch.tensor(
            [bool(text.strip()) and number not in special for number, text in enumerate(texts)]
        )

    def __call__(self, tree: TokenTree) -> Tensor:
        """Return int64 [B, R, T], the line of each counted token, −1 elsewhere."""
        device = tree.response_ids.device
        self._breaks, self._visible = self._breaks.to(device), self._visible.to(device)
        return line_numbers(
            self._breaks[tree.response_ids], self._visible[tree.response_ids], tree.counted_mask
        )


def line_numbers(breaks: Tensor, visible: Tensor, counted: Tensor) -> Tensor:
    """Return the number of each token's line among those with visible text, −1 where it doesn't count.

    Args:
        breaks: bool [..., T], whether a token has a line break.
        visible: bool [..., T], whether it has visible text.
        counted: bool [..., T]; a token that doesn't count ends a line.

    Examples:
        Of "one", a break, white space, a break, "two", "three" with a break at its end, "four":

        >>> breaks = torch.tensor([False, True, False, True, False, True, False])
        >>> visible = torch.tensor([True, False, False, False, True, True, True])
        >>> line_numbers(breaks, visible, torch.ones(7, dtype=torch.bool)).tolist()
        [0, 0, 0, 0, 1, 1, 2]
    """
    ends = (breaks | ~counted).long()
    before = ends.cumsum(dim=-1) - ends
    visible = visible & counted
    last = torch.where(visible, before, -1).cummax(dim=-1).values
    previous = torch.cat([torch.full_like(last[..., :1], -1), last[..., :-1]], dim=-1)
    number = (visible & (before > previous)).cumsum(dim=-1) - 1
    return torch.where(counted, number.clamp(min=0), -1)

"""The steps of responses: lines, found from their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.data import PreferenceDataset
from pl_prefopt.errors import DataError
from pl_prefopt.objectives.steps import count_lines
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import PLAIN, TokenTree

_ROWS = 64
"""The number of rows whose lines are counted at once."""


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
        return self.numbers(tree.response_ids, tree.counted_mask)

    def numbers(self, ids: Tensor, counted: Tensor) -> Tensor:
        """Return the line of each counted token, −1 elsewhere; all of one shape."""
        self._breaks, self._visible = self._breaks.to(ids.device), self._visible.to(ids.device)
        return line_numbers(self._breaks[ids], self._visible[ids], counted)


def check_lines(lines: LineSteps, datasets: Mapping[str, PreferenceDataset]) -> None:
    """Check that the tokens of each response have the lines of its text.

    A chat template that writes lines of its own into the assistant's turn would shift the steps, and so would
    a tokeniser with line breaks inside tokens. Truncated responses are tokenised whole. Lines of reasoning
    and tool calls are the response's own, and not in the text.

    Args:
        lines: numbers the lines.
        datasets: the rows of each split.

    Raises:
        DataError: naming the first row for which that isn't so.
    """
    for split, dataset in datasets.items():
        for start in range(0, len(dataset), _ROWS):
            batch = dataset.batch(range(start, min(start + _ROWS, len(dataset))), views=[PLAIN])
            tree = batch.trees[PLAIN]
            found = lines(tree).amax(dim=-1) + 1
            for place, row in enumerate(batch.rows):
                counts = found[place].tolist()
                if _is_truncated(tree, place, dataset.renderer.end_token_id):
                    counts = _of_whole(lines, dataset, row)
                _compare(row, counts, split)


def _is_truncated(tree: TokenTree, place: int, end: int) -> bool:
    """Return whether a response of a row lacks the token that ends all whole ones."""
    sizes = tree.response_mask[place].sum(dim=-1)
    last = tree.response_ids[place].gather(-1, (sizes - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return bool(((sizes > 0) & (last != end)).any())


def _of_whole(lines: LineSteps, dataset: PreferenceDataset, row: PreferenceRow) -> list[int]:
    encoded = dataset.renderer.unlimited().encode(row)
    return [
        int(lines.numbers(torch.as_tensor(ids), torch.as_tensor(counted)).max()) + 1
        for ids, counted in zip(encoded.response_ids, encoded.counted, strict=True)
    ]


def _compare(row: PreferenceRow, counts: list[int], split: str) -> None:
    for number, (response, found) in enumerate(zip(row.responses, counts, strict=False), 1):
        expected = count_lines(response)
        if found != expected and not any(turn.more for turn in response):
            raise DataError(
                f"the steps of a response are its lines, of which response {number} of "
                f"{row.origin or 'a row'} ({split}) has {expected}, but its tokens have {found}: the chat "
                "template writes lines of its own into the assistant's turn, or the tokeniser joins lines: "
                "set data.template to plain, or to a file with a template that writes the text alone."
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

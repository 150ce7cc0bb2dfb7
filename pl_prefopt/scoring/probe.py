"""Probing whether a way of scoring gives a model's own log-probs, on a few tokens, before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.scoring.gradients import Slopes
from pl_prefopt.scoring.heads import Head
from pl_prefopt.scoring.inputs import base_model, evaluating, longest_row
from pl_prefopt.scoring.layouts import Layout
from pl_prefopt.scoring.single_rows import FAILURES, class_name, floor, last_log_probs, row_of, singly
from pl_prefopt.scoring.windows import shortened, window_settings, without_own_masks
from pl_prefopt.types import TokenTree

_PROMPTS = (5, 3, 4)
_RESPONSES = ((3, 1), (5, 1), (2, 0))
"""Few different lengths, since some kernels are compiled per length; longer than a shortened window."""
_COMMON = 2
_MOST_FLOORS = 20
"""The largest tolerance, in multiples of the smallest: beyond it, a row's log-probs depend on its batch."""
_WORDS = 9
"""Distinct tokens of a probe. Text repeats tokens, so a model that selects among them has to break ties."""
_MORE = 8
"""Additional tokens of the first prompt where the model has windows."""
_LONGEST = 4096
"""The longest window for which rows are lengthened."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A few responses with their log-probs by single forward passes: unpadded rows, no mask, no positions.

    Attributes:
        model: the model, in evaluation mode.
        tree: the prompts and responses, longer than the model's windows.
        expected: float32 [B, R, T], their log-probs.
        tolerance: the difference that rounding explains.
        unreached: the length of a window that these rows don't exceed, 0 for none.
        slopes: what the gradients are compared with; ``None`` where they aren't.
    """

    model: nn.Module
    tree: TokenTree
    expected: Tensor
    tolerance: float
    unreached: int = 0
    slopes: Slopes | None = None

    @classmethod
    def of(cls, model: nn.Module, tree: TokenTree, unreached: int = 0) -> Self:
        """Score the responses singly, and measure how this model rounds.

        Raises:
            ConfigError: if the model takes more than token ids, or a later token changes the log-prob of an
                earlier one.
        """
        expected = singly(model, tree)
        tolerance = _tolerance(model, tree, expected)
        return cls(model=model, tree=tree, expected=expected, tolerance=tolerance, unreached=unreached)

    def obstacle(self, layout: Layout, head: Head, what: str, *, by_kernels: bool = False) -> str | None:
        """Return what is wrong with a way of scoring, ``None`` if it gives the model's own log-probs.

        Args:
            layout: the layout.
            head: the head.
            what: words for both.
            by_kernels: whether kernels or compiled code compute the gradients. These are compared then as
                well, if the model is trained.
        """
        name, slopes = class_name(self.model), self.slopes if by_kernels else None
        if slopes is not None and slopes.problem:
            return f"{name}'s gradients can't be compared with those of {what} ({slopes.problem})"
        try:
            with torch.no_grad():
                found = layout.token_log_probs(self.model, self.tree, head)
            slope = 0.0 if slopes is None else slopes.gap(layout, head)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            return f"{name} refuses {what} ({error})"
        gap = _largest(found - self.expected)
        if not gap <= self.tolerance:
            return f"{name} gives different log-probs with {what} (by up to {gap:.2g})"
        if slopes is not None and not slope <= slopes.tolerance:
            return f"{name} gives different gradients with {what} (by {slope:.2g} of their norm)"
        return None

    def with_slopes(self, tree: TokenTree) -> Self:
        """Return a probe that compares the gradients of the log-probs of ``tree`` as well."""
        return replace(self, slopes=Slopes.of(self.model, tree))

    @torch.no_grad()
    def own_limit(self) -> str | None:
        """Return why a row of many responses may be too wide for the model, though each response is not."""
        name = class_name(self.model)
        if self.unreached:
            return f"{name} has a window of {self.unreached} tokens, which is too long to be probed"
        with without_own_masks(self.model) as columns:
            if columns and not self.change() <= self.tolerance:
                return f"{name} masks by columns, of which it has {columns}"
        return None

    @torch.no_grad()
    def change(self) -> float:
        """Return by how much the model's log-probs differ now; infinity if it gives none."""
        try:
            return _largest(singly(self.model, self.tree) - self.expected)
        except ConfigError:
            return math.inf


@contextmanager
@torch.no_grad()
def probing(model: nn.Module, device: torch.device, *, gradients: bool = False) -> Iterator[Probe]:
    """Yield a probe, with the model in evaluation mode and its windows shortened.

    Where shortening a setting has no effect, rows are made longer than the window instead.

    Args:
        model: the policy or a reference.
        device: where it is.
        gradients: whether those are compared as well; the model is trained then.

    Raises:
        ConfigError: if the model is no causal language model.
    """
    with evaluating(model):
        probe = Probe.of(model, _few_tokens(model, device))
        settings = window_settings(model)
        if settings:
            short = {name: value for name, value in settings.items() if _is_kept_short(probe, name, value)}
            longest = max((value for name, value in settings.items() if name not in short), default=0)
            beyond, unreached = _reach(model, longest)
            with shortened(model, short):
                probe = Probe.of(model, _few_tokens(model, device, beyond=_MORE + beyond), unreached)
                yield probe.with_slopes(_few_tokens(model, device, beyond=_MORE)) if gradients else probe
        else:
            yield probe.with_slopes(probe.tree) if gradients else probe


def _is_kept_short(probe: Probe, name: str, value: int) -> bool:
    """Tell whether a window can be shortened: the model still runs, and its log-probs change."""
    with shortened(probe.model, {name: value}):
        return probe.tolerance < probe.change() < math.inf


def _tolerance(model: nn.Module, tree: TokenTree, expected: Tensor) -> float:
    """Return by how much rounding alone may change this model's log-probs.

    All rows are scored once more in one batch, with other tokens behind them in the place of padding. Two
    variants of the first row show what a later token changes, and what an earlier one.
    """
    places = tree.response_mask.any(dim=2).nonzero().tolist()
    rows = [row_of(tree, row, number) for row, number in places]
    prompt, size, first = tree.prompt_lengths[0], tree.response_sizes[0][0], rows[0]
    width, other = max(map(len, rows)) + 1, tree.prompt_ids[0, :2]
    replaced = torch.where(first[prompt - 1 : prompt] == other[:1], other[1:], other[:1])
    earlier = torch.cat([first[: prompt - 1], replaced, first[prompt:]])
    behind = [(row, other[:1]) for row in (*rows, earlier)] + [(first, other[1:])]
    batch = torch.stack([torch.cat([row, token.expand(width)])[:width] for row, token in behind])
    log_probs = last_log_probs(model, batch, width - 1)
    at_response = slice(prompt - 1, prompt - 1 + size)
    reaction = _largest((log_probs[-2] - log_probs[0])[at_response])
    usual = floor(model, expected.device)
    least = max(min(usual, reaction / 20), 1e-5)
    gap = _largest((log_probs[-1] - log_probs[0])[: len(first) - 1])
    if not gap <= least:  # rows of the same shape, so there is hardly any rounding
        raise ConfigError(
            f"{class_name(model)} is no causal language model: with other tokens behind it, a token's "
            f"log-prob differs by {gap:.2g}. Name a model that predicts the next token from those before it; "
            "an encoder such as BERT is none."
        )
    noise = max(
        _largest(
            found[: len(row) - 1][-tree.response_sizes[b][r] :] - expected[b, r][tree.response_mask[b, r]]
        )
        for found, row, (b, r) in zip(log_probs, rows, places, strict=False)
    )
    return min(least + 4 * noise, _MOST_FLOORS * usual)


def _reach(model: nn.Module, window: int) -> tuple[int, int]:
    """Return by how many tokens to lengthen rows for a window, and its length if they can't be."""
    limit = longest_row(model)
    longest = _PROMPTS[0] + _MORE + max(map(max, _RESPONSES)) + window
    if window == 0 or (limit is not None and longest > limit):
        return 0, 0  # no row is as long
    return (window, 0) if window <= _LONGEST else (0, window)


def _few_tokens(model: nn.Module, device: torch.device, beyond: int = 0) -> TokenTree:
    """Return a tree of tokens from the whole vocabulary except its ends; the first row is ``beyond`` longer.

    The ends hold the special tokens, for which bfloat16 rounds a real model's log-probs by several nats.
    """
    prompts = torch.tensor([_PROMPTS[0] + beyond, *_PROMPTS[1:]])
    responses = torch.tensor(_RESPONSES)
    prompt_mask = torch.arange(int(prompts.max())) < prompts.unsqueeze(1)
    response_mask = torch.arange(int(responses.max())) < responses.unsqueeze(2)
    vocabulary = base_model(model).config.get_text_config().vocab_size
    count = prompt_mask.numel() + response_mask.numel()
    number = torch.arange(count)
    word = (number * number + number // 4) % _WORDS
    ids = vocabulary // 8 + (1 + word) * 7919 % (vocabulary - vocabulary // 4)
    prompt_ids, response_ids = ids[: prompt_mask.numel()], ids[prompt_mask.numel() :]
    prompt_ids = prompt_ids.view(prompt_mask.shape)
    prompt_ids[:, :_COMMON] = prompt_ids[0, :_COMMON]
    tree = TokenTree(
        prompt_ids=prompt_ids * prompt_mask,
        prompt_mask=prompt_mask,
        response_ids=response_ids.view(response_mask.shape) * response_mask,
        response_mask=response_mask,
        counted_mask=response_mask,
    )
    return tree.to(device)


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()

"""Layouts of token trees in a model's input: prefix trees, or one row per response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.attention import ARGUMENT, TREE_VARLEN, no_mask
from pl_prefopt.scoring.heads import Head, Reading
from pl_prefopt.scoring.inputs import base_model, laid_out, on_device, response_tokens, without_first
from pl_prefopt.scoring.masks import Branches, MaskKind, for_model
from pl_prefopt.scoring.packing import Packing, pack, pack_behind
from pl_prefopt.scoring.prefix_cache import PrefixCache
from pl_prefopt.scoring.readouts import LogProbs, Positions, Readout, Tokens
from pl_prefopt.scoring.segments import segments_of
from pl_prefopt.scoring.ways import BY_KERNELS
from pl_prefopt.types import TokenTree


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """A token tree as a model's input, and the places of its tokens in it, as row · L + column.

    Attributes:
        inputs: the arguments of the model's ``forward``.
        predicting: int64 [B, R, T], the position that predicts each response token; anything at padding.
        response_end: int64 [B, R], the last token of each response; any position where it is absent.
        prompt_end: int64 [B], the last token of each prompt.
        prompt: int64 [B, 1 or R, P], the prompt tokens of each response; N · L for none.
        response: int64 [B, R, T], the response tokens; N · L for none.
        start: no column before this one is read.
    """

    inputs: dict[str, Any]
    predicting: Tensor
    response_end: Tensor
    prompt_end: Tensor
    prompt: Tensor
    response: Tensor
    start: int = 0

    def counts(self, tree: TokenTree, counted: Tensor) -> Tensor:
        """Return float32 [N, L], the number of responses that each position is on the branch of.

        Args:
            tree: the tree.
            counted: bool [B], whether a prompt's responses count.
        """
        there = tree.response_mask.any(dim=2, keepdim=True) & counted.view(-1, 1, 1)
        nowhere = self.inputs["input_ids"].numel()
        prompt = self.prompt.expand(*there.shape[:2], -1).where(there, nowhere)
        places = torch.cat([prompt.flatten(), self.response.where(there, nowhere).flatten()])
        counts = torch.zeros(nowhere + 1, device=places.device)
        counts = counts.index_add(0, places, torch.ones_like(places, dtype=counts.dtype))
        return counts[:nowhere].view_as(self.inputs["input_ids"])

    def places(self, at: Positions, tokens: Tokens) -> Tensor:
        """Return the places [N] of one kind."""
        if at == "tokens":
            return self.predicting.flatten()[tokens.number]
        return (self.response_end if at == "response" else self.prompt_end).flatten()


class Layout(ABC):
    """A way of running a model on a token tree."""

    @abstractmethod
    def read(
        self, model: nn.Module, tree: TokenTree, head: Head, readouts: Sequence[Readout]
    ) -> list[Tensor]:
        """Run ``model`` and return what each readout gives.

        Returns:
            [B, R, T] or [B, R, T, J] at tokens, [B, R, J] at responses, [B, J] at prompts; 0 at padding and
            at absent responses.
        """

    def token_log_probs(self, model: nn.Module, tree: TokenTree, head: Head) -> Tensor:
        """Return the log-prob of each response token given its prompt, float32 [B, R, T], 0 at padding."""
        return self.read(model, tree, head, [LogProbs()])[0]


def read_laid_out(
    model: nn.Module, tree: TokenTree, head: Head, readouts: Sequence[Readout], laid: LaidOut
) -> list[Tensor]:
    """Run ``model`` on a tree that has been laid out; see ``Layout.read``."""
    number = response_tokens(tree)
    tokens = Tokens(tree.response_ids.flatten()[number], number)
    readings = [Reading(readout, laid.places(readout.at, tokens)) for readout in readouts]
    values = head.read(model, readings, tokens, laid.start, **laid.inputs)
    return [_spread(value, readout.at, number, tree) for readout, value in zip(readouts, values, strict=True)]


def _spread(values: Tensor, at: Positions, number: Tensor, tree: TokenTree) -> Tensor:
    """Scatter values [N, ...] to their places in the batch, with 0 elsewhere."""
    if at == "prompt":
        return values
    batch = tree.response_ids.shape[:2]
    if at == "response":
        absent = ~tree.response_mask.any(dim=2)
        return values.view(*batch, -1).masked_fill(absent.unsqueeze(-1), 0.0)
    shape = tree.response_ids.shape
    # Not in place, so that a batch without any response token has a graph, too.
    whole = values.new_zeros(shape.numel(), *values.shape[1:])
    return whole.index_copy(0, number, values).view(*shape, *values.shape[1:])


class PlainLayout(Layout):
    """One row per response: [prompt | response | padding].

    The model gets token ids only, as for a single sequence: it computes positions and masks itself, and in a
    causal model no token attends to the padding that follows.
    """

    def read(
        self, model: nn.Module, tree: TokenTree, head: Head, readouts: Sequence[Readout]
    ) -> list[Tensor]:
        """Run ``model`` and return what each readout gives."""
        return read_laid_out(model, tree, head, readouts, self.lay_out(tree))

    def lay_out(self, tree: TokenTree) -> LaidOut:
        """Return the model's input."""
        starts, lengths = _rows(tree)
        rows, width = len(lengths), max(map(sum, lengths))
        nowhere, device = rows * width, tree.prompt_ids.device
        first = on_device(starts, device).unsqueeze(-1) * width
        number, step = (torch.arange(count, device=device) for count in _token_counts(tree))
        shown = tree.prompt_mask.unsqueeze(1) & (first >= 0)
        prompt = (first + number).where(shown, nowhere)
        behind = first.squeeze(-1) + tree.prompt_mask.sum(dim=1, keepdim=True)
        response = behind.unsqueeze(-1) + step
        shown_response = response.where(tree.response_mask, nowhere)
        ids = laid_out(
            torch.cat([prompt.flatten(), shown_response.flatten()]),
            torch.cat(
                [tree.prompt_ids.unsqueeze(1).expand(prompt.shape).flatten(), tree.response_ids.flatten()]
            ),
            rows=rows,
            width=width,
            padding=0,
        )
        last = min(prompt for prompt, _ in lengths) - 1
        there = first.squeeze(-1) >= 0
        # A prompt without responses has no row; the value read in its place is masked.
        prompt_end = (behind - 1).where(there, -1).amax(dim=1).clamp(min=last)
        return LaidOut(
            inputs={"input_ids": ids},
            predicting=response - 1,
            response_end=(behind + tree.response_mask.sum(dim=2) - 1).where(there, last),
            prompt_end=prompt_end,
            prompt=prompt,
            response=shown_response,
            start=last,
        )


class SingleLayout(Layout):
    """One response per forward pass: for models whose rows affect one another."""

    def read(
        self, model: nn.Module, tree: TokenTree, head: Head, readouts: Sequence[Readout]
    ) -> list[Tensor]:
        """Run ``model`` and return what each readout gives."""
        groups = [
            [
                [(b, r) == (row, number) for r in range(len(sizes))]
                for b, sizes in enumerate(tree.response_sizes)
            ]
            for row, number in _present(tree)
        ]
        plain = PlainLayout()
        return in_groups(tree, groups, readouts, lambda part, asked: plain.read(model, part, head, asked))


class TreeLayout(Layout):
    """Prefix trees: [shared prefix | prompt 1 | its responses ... | prompt 2 | its responses ... | ...].

    Every token is computed once. Trees are packed into few rows, without padding between them; the prefix
    that all prompts share (a system prompt, say) is at the start of each row. A prompt attends to the shared
    prefix and to itself, a response also to its prompt, and position ids run along each such branch. For
    models whose positions are given by ``position_ids`` and whose attention takes a mask [N, 1, L, L], layers
    with a sliding window one of their own; or is ``tree_varlen``, which takes no mask. Kernels, which skip
    what is masked, get all trees in one row.

    Args:
        masks: which masks the model is given.
        attention: ``tree_varlen`` or one of ``masks.FORMS``; the model's own by default.

    With a filled prefix cache, the tokens that prompts share with their plain ones are not computed again:
    their cached keys and values are prepended to the row.
    """

    def __init__(self, masks: MaskKind = "full", attention: str | None = None) -> None:
        self.masks: MaskKind = masks
        self.attention = attention

    def read(
        self,
        model: nn.Module,
        tree: TokenTree,
        head: Head,
        readouts: Sequence[Readout],
        prefix_cache: PrefixCache | None = None,
    ) -> list[Tensor]:
        """Run ``model`` and return what each readout gives.

        Args:
            model: the policy or a reference.
            tree: B prompts and their responses.
            head: how the model's states are read.
            readouts: what to read.
            prefix_cache: filled if it is empty; else the first ``tree.shared_with_plain`` tokens of each
                prompt are read from it.
        """
        return read_laid_out(model, tree, head, readouts, self.lay_out(model, tree, prefix_cache))

    def lay_out(self, model: nn.Module, tree: TokenTree, prefix_cache: PrefixCache | None = None) -> LaidOut:
        """Return the model's input."""
        stood = None if prefix_cache is None else prefix_cache.places
        attention = self.attention or base_model(model).config._attn_implementation
        most_rows = 1 if attention in BY_KERNELS else None
        places = Places.of(tree, read=stood is not None and _pays(tree), most_rows=most_rows)
        inputs: dict[str, Any] = (
            places.segments(tree)
            if attention == TREE_VARLEN
            else {"attention_mask": for_model(places.branches(tree), model, self.masks, attention)}
        )
        if prefix_cache is not None and stood is None:
            inputs["past_key_values"] = prefix_cache.written_at(places.prompt)
        elif prefix_cache is not None and stood is not None and places.read:
            inputs["past_key_values"] = prefix_cache.read_at(places.recalled(stood))
        return LaidOut(
            inputs={
                "input_ids": places.spread(tree.prompt_ids, tree.response_ids, padding=0)[:, places.read :],
                "position_ids": places.positions(tree)[:, places.read :],
                **inputs,
            },
            predicting=places.computed(_predicting(tree, places)),
            response_end=places.computed(_last(tree, places)),
            prompt_end=places.computed(places.prompt_end),
            prompt=places.prompt.unsqueeze(1),
            response=places.response,
        )


def _pays(tree: TokenTree) -> bool:
    """Tell whether the prefix cache saves more tokens than the prefix that all prompts share."""
    return sum(tree.shared_with_plain) > tree.shared_prefix * (len(tree.prompt_lengths) - 1)


@dataclass(frozen=True, kw_only=True)
class Places:
    """The place of each token of a tree in N rows of L columns, as row · L + column; padding is at N · L.

    Attributes:
        prompt: int64 [B, P].
        response: int64 [B, R, T].
        prompt_end: int64 [B], each prompt's last token.
        packing: the place of each tree.
        shared_prefix: the number of first tokens shared by all prompts, which each row has once.
    """

    prompt: Tensor
    response: Tensor
    prompt_end: Tensor
    packing: Packing
    shared_prefix: int

    @property
    def rows(self) -> int:
        """N."""
        return self.packing.rows

    @property
    def width(self) -> int:
        """L."""
        return self.packing.width

    @property
    def read(self) -> int:
        """The number of each row's first columns whose keys and values are read from a prefix cache."""
        return self.packing.read

    @classmethod
    def of(cls, tree: TokenTree, *, read: bool = False, most_rows: int | None = None) -> Places:
        """Pack the trees of a batch, by sizes known on the CPU, without synchronising with a GPU.

        Args:
            tree: the batch.
            read: put the tokens that are read from a prefix cache before a row's others.
            most_rows: the largest number of rows.
        """
        sizes = [sum(pair) for pair in zip(tree.prompt_lengths, tree.response_lengths, strict=True)]
        packing = (
            pack_behind(sizes, tree.shared_with_plain, most_rows=most_rows)
            if read
            else pack(sizes, tree.shared_prefix, most_rows=most_rows)
        )
        firsts, behinds = (
            [row * packing.width + column for row, column in zip(packing.row, columns, strict=True)]
            for columns in (packing.head_start, packing.start)
        )
        sides = on_device([packing.head, firsts, behinds, tree.prompt_lengths], tree.prompt_ids.device)

        def placed(number: Tensor) -> Tensor:
            """Return the places of the tokens with these numbers, counted from each tree's first."""
            head, first, behind, _ = sides.view(4, -1, *(1,) * (number.dim() - 1)).unbind()
            return torch.where(number < head, first + number, behind + number - head)

        prompt_length, nowhere = sides[3], packing.rows * packing.width
        counted = tree.response_mask.flatten(1).cumsum(dim=1).view(tree.response_mask.shape) - 1
        prompt = placed(tree.prompt_mask.cumsum(dim=1) - 1)
        response = placed(counted + prompt_length.view(-1, 1, 1))
        return cls(
            prompt=prompt.masked_fill(~tree.prompt_mask, nowhere),
            response=response.masked_fill(~tree.response_mask, nowhere),
            prompt_end=placed(prompt_length - 1),
            packing=packing,
            shared_prefix=0 if read else tree.shared_prefix,
        )

    def spread(self, prompt: Tensor, response: Tensor, *, padding: int) -> Tensor:
        """Scatter values of prompt tokens [B, P] and response tokens [B, R, T] to their places in [N, L]."""
        places = torch.cat([self.prompt.flatten(), self.response.flatten()])
        return self._laid(places, torch.cat([prompt.flatten(), response.flatten()]), padding)

    def computed(self, place: Tensor) -> Tensor:
        """Return the places among the computed columns, as row · (L - read) + column."""
        return without_first(place, self.read, self.width)

    def recalled(self, stood: Tensor) -> Tensor:
        """Return the cached tokens' places in the first pass, int64 [N, read], given its places [B, P]."""
        both = min(self.prompt.shape[1], stood.shape[1])
        source = self._laid(self.prompt[:, :both].flatten(), stood[:, :both].flatten(), 0)
        return source[:, : self.read]

    def branches(self, tree: TokenTree) -> Branches:
        """Return which branch each place belongs to."""
        batch, responses = tree.response_ids.shape[:2]
        trunk = 1 + torch.arange(batch, device=self.prompt.device) * (responses + 1)
        number = torch.arange(tree.prompt_ids.shape[1], device=self.prompt.device)
        prompt = torch.where(number < self.shared_prefix, 0, trunk.unsqueeze(1))
        own = trunk.unsqueeze(1) + torch.arange(1, responses + 1, device=trunk.device)
        shape = tree.response_ids.shape
        return Branches(
            own=self.spread(prompt, own.unsqueeze(2).expand(shape), padding=-1),
            trunk=self.spread(prompt, trunk.view(-1, 1, 1).expand(shape), padding=-1),
            position=self.positions(tree),
            read=self.read,
        )

    def positions(self, tree: TokenTree) -> Tensor:
        """Return the position ids, int64 [N, L]."""
        return self.spread(*_positions(tree), padding=0)

    def segments(self, tree: TokenTree) -> dict[str, Any]:
        """Return what ``tree_varlen`` takes in place of a mask."""
        device = tree.prompt_ids.device
        segments = segments_of(tree.prompt_lengths, tree.response_sizes, self.packing, device)
        return {ARGUMENT: segments, "attention_mask": no_mask(device)}

    def _laid(self, places: Tensor, values: Tensor, padding: int) -> Tensor:
        return laid_out(places, values, rows=self.rows, width=self.width, padding=padding)


def _positions(tree: TokenTree) -> tuple[Tensor, Tensor]:
    """Return the position ids of prompt tokens, [B, P], and of response tokens, [B, R, T]."""
    prompt = torch.arange(tree.prompt_ids.shape[1], device=tree.prompt_ids.device)
    step = torch.arange(tree.response_ids.shape[2], device=tree.prompt_ids.device)
    response = tree.prompt_mask.sum(dim=1).view(-1, 1, 1) + step
    return prompt.expand(tree.prompt_ids.shape), response.expand(tree.response_ids.shape)


def _predicting(tree: TokenTree, places: Places) -> Tensor:
    """Return the place that predicts each response token, [B, R, T]: the one before it on its branch."""
    step = torch.arange(tree.response_ids.shape[2], device=tree.response_ids.device)
    return torch.where(step == 0, places.prompt_end.view(-1, 1, 1), places.response - 1)


def _last(tree: TokenTree, places: Places) -> Tensor:
    """Return the place of each response's last token, [B, R]; the prompt's last token where it is absent."""
    step = (tree.response_mask.sum(dim=2, keepdim=True) - 1).clamp(min=0)
    there = tree.response_mask.any(dim=2)
    return places.response.gather(2, step).squeeze(2).where(there, places.prompt_end.unsqueeze(1))


def _token_counts(tree: TokenTree) -> tuple[int, int]:
    return tree.prompt_ids.shape[1], tree.response_ids.shape[2]


def _present(tree: TokenTree) -> list[tuple[int, int]]:
    """Return (prompt, response) indices of all present responses; the first pair if none is present."""
    places = [(row, number) for row, sizes in enumerate(tree.response_sizes) for number in range(len(sizes))]
    return [(row, number) for row, number in places if tree.response_sizes[row][number]] or places[:1]


def _rows(tree: TokenTree) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Return the row of each response, [B][R], -1 for none, and each row's tokens of prompt and response."""
    starts = [[-1] * len(sizes) for sizes in tree.response_sizes]
    lengths: list[tuple[int, int]] = []
    for row, number in _present(tree):
        starts[row][number] = len(lengths)
        lengths.append((tree.prompt_lengths[row], tree.response_sizes[row][number]))
    return starts, lengths


def in_groups(
    tree: TokenTree,
    groups: Sequence[Sequence[Sequence[bool]]],
    readouts: Sequence[Readout],
    read: Callable[[TokenTree, Sequence[Readout]], list[Tensor]],
) -> list[Tensor]:
    """Score some responses at a time.

    Args:
        tree: B prompts and their responses.
        groups: flags [B][R] of each group's responses; no response is in two groups.
        readouts: what to read.
        read: reads a part of the tree.

    Returns:
        What each readout gives, as ``Layout.read``; at prompts, what the first group with the prompt gives.
    """
    device, batch = tree.prompt_ids.device, len(tree.prompt_lengths)
    found: list[Tensor] = []
    done: set[int] = set()
    for chosen in groups:
        rows = [row for row, flags in enumerate(chosen) if any(flags)] or [0]
        index = on_device([rows], device)[0]
        fresh = on_device([[row not in done and any(chosen[row]) for row in rows]], device)[0]
        values = read(_part(tree, rows, index, chosen), [readout.part(index) for readout in readouts])
        for place, readout in enumerate(readouts):
            if place == len(found):
                found.append(values[place].new_zeros(batch, *values[place].shape[1:]))
            value = values[place]
            if readout.at == "prompt":
                value = value * fresh.unsqueeze(-1)
            found[place] = found[place].index_add(0, index, value)
        done.update(row for row in rows if any(chosen[row]))
    return found


def _part(tree: TokenTree, rows: list[int], index: Tensor, chosen: Sequence[Sequence[bool]]) -> TokenTree:
    kept = on_device([chosen[row] for row in rows], index.device).bool().unsqueeze(2)
    sizes = tuple(
        tuple(size if flag else 0 for size, flag in zip(tree.response_sizes[row], chosen[row], strict=True))
        for row in rows
    )
    return TokenTree(
        prompt_ids=tree.prompt_ids[index],
        prompt_mask=tree.prompt_mask[index],
        response_ids=tree.response_ids[index],
        response_mask=tree.response_mask[index] & kept,
        counted_mask=tree.counted_mask[index] & kept,
        prompt_lengths=tuple(tree.prompt_lengths[row] for row in rows),
        response_lengths=tuple(map(sum, sizes)),
        response_sizes=sizes,
        shared_prefix=tree.shared_prefix,
    )

"""What travels between data, scorer, references, objectives and metrics.

Letters in shapes: B prompts, R responses per prompt (padded to the batch's largest), P prompt tokens,
T response tokens, K references. An absent response (padding up to R) is never counted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from pl_prefopt.requests import Direction
from pl_prefopt.rows import PreferenceRow

_Move = Callable[[Any], Any]
_ALIGNED = 16
"""Bytes: a multiple of every element's size."""

Column: TypeAlias = Tensor | tuple[str | None, ...] | tuple[tuple[str | None, ...], ...]
"""The rows' values of one column, see ``PreferenceBatch.columns``."""

PLAIN = "plain"
"""The name of the view that is trained on: the rows as they are."""


@dataclass(slots=True, kw_only=True)
class TokenTree:
    """B prompts and their responses as tokens of one tokeniser. Padding is on the right everywhere.

    Attributes:
        prompt_ids: int64 [B, P].
        prompt_mask: bool [B, P], true at the prompt's tokens.
        response_ids: int64 [B, R, T].
        response_mask: bool [B, R, T], true at the response's tokens (all of them are attended to).
        counted_mask: bool [B, R, T], true where a token's log-prob counts; false at the turns of a
            user inside a response of several messages.
        prompt_lengths: each prompt's number of tokens. These four follow from the tensors; they are kept on
            the CPU to avoid waiting for a GPU.
        response_lengths: each prompt's number of response tokens, over all its responses together.
        response_sizes: each prompt's number of tokens of each of its R responses, 0 where one is absent.
        shared_prefix: the number of first tokens that all B prompts share.
        shared_with_plain: the number of first tokens that each prompt shares with its row's plain prompt, at
            most all of its own but one; empty in a plain tree.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    counted_mask: Tensor
    prompt_lengths: tuple[int, ...] = ()
    response_lengths: tuple[int, ...] = ()
    response_sizes: tuple[tuple[int, ...], ...] = ()
    shared_prefix: int = -1
    shared_with_plain: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.shared_prefix < 0:
            self.prompt_lengths = tuple(self.prompt_mask.sum(dim=1).tolist())
            self.response_sizes = tuple(map(tuple, self.response_mask.sum(dim=2).tolist()))
            self.response_lengths = tuple(map(sum, self.response_sizes))
            same = (self.prompt_ids == self.prompt_ids[0]) & self.prompt_mask
            self.shared_prefix = int(same.all(dim=0).cumprod(dim=0).sum())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenTree:
        """Return a copy on ``device``; see ``moved``."""
        return moved(self, device, non_blocking=non_blocking)

    def pin_memory(self) -> TokenTree:
        """Return a copy in one piece of page-locked memory."""
        return together(self, pinned=True)

    def map(self, move: _Move) -> TokenTree:
        """Return a copy with ``move`` applied to every tensor."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return TokenTree(**{k: move(v) if isinstance(v, Tensor) else v for k, v in held.items()})


class PreferenceBatch:
    """B prompts with up to R responses each.

    Deliberately not a dataclass: Lightning's half-precision plugins cast every float they find inside
    one, and a score of 7.31 would reach the metrics as 7.3125.

    Attributes:
        index: int64 [B], the rows' numbers in their split; the key of precomputed log-probs.
        numbers: the same on the CPU, to avoid waiting for a GPU.
        split: the split they come from: ``train``, ``val``, ``test`` or ``predict``.
        rows: the B rows as text, for references that have their own tokeniser.
        present: bool [B, R], false at padding up to R, and at rows that only fill a rank's last batch.
        scores: float32 [B, R], NaN where absent or unknown.
        graded: bool [B], whether score differences mean something.
        trees: one ``TokenTree`` a view; ``trees["plain"]`` is always there.
        references: float32 [K, B, R] sums of log-probs per view. Where they are not given, the module that
            scores the batch puts what the ``ReferenceEnsemble`` answers here.
        columns: the rows' further columns by name. Numbers are tensors [B], or [B, R] where each response
            has one: int64, float64 or bool; float64 with NaN where the data lacks some. Texts are a tuple of
            B, or of B tuples of R. Values of absent responses are NaN, 0, false or ``None``.
        sets: B names of the evaluation sets that the rows belong to; empty if the sets have no names.
    """

    __slots__ = (
        "columns",
        "graded",
        "index",
        "numbers",
        "present",
        "references",
        "rows",
        "scores",
        "sets",
        "split",
        "trees",
    )

    def __init__(
        self,
        *,
        index: Tensor,
        split: str,
        rows: Sequence[PreferenceRow],
        present: Tensor,
        scores: Tensor,
        graded: Tensor,
        trees: Mapping[str, TokenTree],
        references: Mapping[str, Tensor] | None = None,
        columns: Mapping[str, Column] | None = None,
        sets: Sequence[str] = (),
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.index, self.split, self.rows, self.sets = index, split, rows, tuple(sets)
        self.numbers: tuple[int, ...] = tuple(index.tolist() if numbers is None else numbers)
        self.present, self.scores, self.graded = present, scores, graded
        self.trees = dict(trees)
        self.references: dict[str, Tensor] = dict(references or {})
        self.columns: dict[str, Column] = dict(columns or {})

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return a copy on ``device``; text stays where it is. See ``moved``."""
        return moved(self, device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """Return a copy in one piece of page-locked memory."""
        return together(self, pinned=True)

    def map(self, move: _Move) -> Self:
        """Return a copy with ``move`` applied to every tensor and every ``TokenTree``."""
        return type(self)(
            split=self.split,
            rows=self.rows,
            index=move(self.index),
            present=move(self.present),
            scores=move(self.scores),
            graded=move(self.graded),
            trees={view: move(tree) for view, tree in self.trees.items()},
            references={view: move(logps) for view, logps in self.references.items()},
            columns={
                name: move(values) if isinstance(values, Tensor) else values
                for name, values in self.columns.items()
            },
            sets=self.sets,
            numbers=self.numbers,
        )


_Parts = TypeVar("_Parts", bound="TokenTree | PreferenceBatch")


def together(parts: _Parts, *, pinned: bool = False) -> _Parts:
    """Return a copy of a batch or a tree on the CPU whose tensors are parts of one piece of memory.

    One piece is pinned, and copied to a GPU, in the time of one tensor.

    Args:
        parts: on the CPU.
        pinned: whether the memory is page-locked.
    """
    tensors = _tensors(parts)
    starts = _starts(tensors)
    whole = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
    copies = [
        _part_of(whole, start, tensor).copy_(tensor) for start, tensor in zip(starts, tensors, strict=False)
    ]
    return _with_tensors(parts, copies)


def moved(parts: _Parts, device: torch.device | str, *, non_blocking: bool = False) -> _Parts:
    """Return a copy on ``device``: by a single copy if all tensors are parts of one piece of memory.

    From the CPU to a GPU that is always so, from page-locked memory, and the CPU doesn't wait for it:
    Lightning calls ``to(device)`` of a batch without ``non_blocking``.

    Args:
        parts: a batch or a tree.
        device: the device.
        non_blocking: don't wait for other copies either.
    """
    if torch.device(device).type == "cuda" and _tensors(parts)[0].device.type == "cpu":
        parts, non_blocking = parts if _is_pinned(parts) else together(parts, pinned=True), True
    tensors = _tensors(parts)
    if not _are_together(tensors):
        return _with_tensors(parts, [one.to(device, non_blocking=non_blocking) for one in tensors])
    first = tensors[0]
    whole = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
    whole = whole.to(device, non_blocking=non_blocking)
    copies = [
        _part_of(whole, start, tensor) for start, tensor in zip(_starts(tensors), tensors, strict=False)
    ]
    return _with_tensors(parts, copies)


def _is_pinned(parts: TokenTree | PreferenceBatch) -> bool:
    tensors = _tensors(parts)
    return _are_together(tensors) and tensors[0].is_pinned()


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Return where each tensor begins in one piece of memory, in bytes, and where the last one ends."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] - (-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED)
    return starts


def _are_together(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors have the places that ``together`` gives them."""
    starts, storage = _starts(tensors), tensors[0].untyped_storage()
    return storage.nbytes() == starts[-1] and all(
        tensor.is_contiguous()
        and tensor.untyped_storage()._cdata == storage._cdata
        and tensor.storage_offset() * tensor.element_size() == start
        for tensor, start in zip(tensors, starts, strict=False)
    )


def _part_of(whole: Tensor, start: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return whole[start : start + size].view(like.dtype).view(like.shape)


def _tensors(parts: TokenTree | PreferenceBatch) -> list[Tensor]:
    """Return all tensors, in the order in which ``map`` visits them."""
    found: list[Tensor] = []

    def note(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
            return part
        return part.map(note)

    parts.map(note)
    return found


def _with_tensors(parts: _Parts, tensors: Sequence[Tensor]) -> _Parts:
    """Return a copy with other tensors, in the same order."""
    remaining = iter(tensors)

    def take(part: Any) -> Any:
        return next(remaining) if isinstance(part, Tensor) else part.map(take)

    replaced: Any = parts.map(take)
    return cast("_Parts", replaced)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLogProbs:
    """What a model thinks of each response.

    Attributes:
        sum: float32 [B, R], Σ_t log π(y_t | x, y_<t) over counted tokens; 0 where absent.
        length: int64 [B, R], the number of counted tokens; 0 where absent.
    """

    sum: Tensor
    length: Tensor

    @property
    def mean(self) -> Tensor:
        """float32 [B, R]: the average log-prob per token, log π(y|x) / |y|."""
        return self.sum / self.length.clamp(min=1)


def _mapped(value: Any, move: _Move) -> Any:
    """Return a copy of nested dataclasses and mappings with ``move`` applied to every tensor."""
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, move) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{each.name: _mapped(getattr(value, each.name), move) for each in fields(value)}
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewLogProbs:
    """A second view's log-probs.

    Attributes:
        policy: the policy's, on the view; with gradient where the objective asked for one.
        references: float32 [K, B, R'], the references', on the view.
        present: bool [B, R'].
        outputs: outputs of a reward head on the view, as in ``ScoredBatch``.
    """

    policy: ResponseLogProbs
    references: Tensor
    present: Tensor
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> None:
        """``None``: only the plain view has numbers per token."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """Empty: columns belong to the plain view."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenNumbers:
    """Numbers per response token, for objectives that ask for them.

    Attributes:
        counted: bool [B, R, T], true where a token's numbers count.
        policy: float32 [B, R, T], log π_θ(y_t | x, y_<t) with gradient; 0 where not counted.
        references: float32 [K, B, R, T], log π_ref(y_t | x, y_<t) without gradient; 0 where not counted. K is
            0 where the objective asks for the policy's numbers alone.
        kl: float32 [K, B, R, T] per direction, with gradient: the KL divergence of the distributions over the
            vocabulary after (x, y_<t), from which y_t was drawn; 0 where not counted.
        collisions: float32 [B, R, T], log Σ_v π_θ(v | x, y_<t)² without gradient, if the objective asks for
            it; 0 where not counted.
        steps: int64 [B, R, T], if the objective asks for it: the number of the line with visible text that a
            token belongs to, from 0 per response; −1 where not counted.
        states: float32 [B, R, T, D] without gradient, if the objective asks for it: the policy's last hidden
            state after (x, y_<t); 0 where not counted.
    """

    counted: Tensor
    policy: Tensor
    references: Tensor
    kl: Mapping[Direction, Tensor] = field(default_factory=dict)
    collisions: Tensor | None = None
    steps: Tensor | None = None
    states: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """All that an objective sees: numbers per response and, where asked for, per token; never a model.

    Attributes:
        policy: the policy's log-probs, with gradient; NaN, with their lengths, where a reward model's
            objective does without them.
        references: float32 [K, B, R] sums of log-probs, no gradient.
        scores: float32 [B, R], NaN where absent or unknown.
        present: bool [B, R].
        graded: bool [B].
        views: the second views that the objective asked for.
        tokens: numbers per token, if the objective asked for them.
        outputs: outputs of heads by name, with gradient: float32 [B, R, O], 0 where a response is absent, or
            [B, O] of heads that read prompts. A reward head's are called ``requests.REWARD``.
        columns: the rows' columns that the objective or a metric asked for, as in ``PreferenceBatch``.
    """

    policy: ResponseLogProbs
    references: Tensor
    scores: Tensor
    present: Tensor
    graded: Tensor
    views: Mapping[str, ViewLogProbs] = field(default_factory=dict)
    tokens: TokenNumbers | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return a copy on ``device``, as ``Trainer.predict`` does with what it returns."""
        moved: Self = _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an objective returns.

    Attributes:
        loss: float32 [B], one loss per prompt, unreduced, with gradient.
        counted: bool [B], false where a prompt has nothing to compare (all its scores tie); its loss is 0.
        reward: float32 [B, R], each response's implicit reward, detached.
        stats: scalars for the dashboard, detached.
        view_rewards: float32 [B, R], the rewards of the same responses on second views, by the view's name,
            detached.
        token_reward: float32 [B, R, T], the share of each response token in its response's reward, detached;
            0 where not counted. ``None`` for objectives without rewards per token.
    """

    loss: Tensor
    counted: Tensor
    reward: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    view_rewards: Mapping[str, Tensor] = field(default_factory=dict)
    token_reward: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return a copy on ``device``, as ``Trainer.predict`` does with what it returns."""
        moved: Self = _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved

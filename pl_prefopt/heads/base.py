"""The base class of reward heads."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ContractError
from pl_prefopt.requests import HeadKind
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import ScoredBatch


@dataclass(frozen=True)
class StatePairs:
    """Hidden states of N labelled pairs, which a trained head is adapted to.

    Attributes:
        chosen: [N, H], at the last tokens of the chosen responses.
        rejected: [N, H], at those of the rejected ones.
        prompt: [N, H], at those of the prompts.
        rows: the row of each pair.
    """

    chosen: Tensor
    rejected: Tensor
    prompt: Tensor
    rows: Sequence[PreferenceRow]

    def part(self, places: Sequence[int]) -> StatePairs:
        """Return some of the pairs."""
        chosen, rejected, prompt = (each[list(places)] for each in (self.chosen, self.rejected, self.prompt))
        return StatePairs(chosen, rejected, prompt, [self.rows[place] for place in places])


class Head(nn.Module, ABC):
    """Maps the hidden states of a response, and of its prompt, to J numbers per response.

    To add a head, derive a class, keep each argument of the constructor as an attribute of the same name,
    create the weights in ``build``, and compute the outputs in ``forward``. A head has no access to the
    model. Its outputs are computed in float32 or better, outside autocast.

    Attributes:
        reads_prompt: whether ``forward`` reads ``prompt``; a zero-width tensor arrives otherwise.
        columns: the columns that every row must have; their values arrive in ``forward``.
        gives: what its outputs are, which decides the objectives that can train it.
    """

    gives: HeadKind = "rewards"
    reads_prompt: bool = False
    columns: tuple[str, ...] = ()

    @property
    @abstractmethod
    def outputs(self) -> int:
        """J, the number of outputs per response; known before ``build``."""

    @abstractmethod
    def build(self, hidden_size: int) -> None:
        """Create the weights, for hidden states of ``hidden_size`` numbers. Called once, after ``learn``."""

    @abstractmethod
    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs of N responses, float32 [N, J].

        Args:
            last: [N, H], the hidden state at each response's last token.
            prompt: [N, H], the hidden state at the last token of its prompt.
            columns: values [N] of ``columns``: numbers as they are, the row's for each of its responses where
                the row has one; texts as ``encode`` numbers them. Anything at absent responses.
        """

    def learn(self, rows: Sequence[PreferenceRow]) -> None:
        """Take from the training rows what ``build`` must know, such as the users; before a model loads.

        Whatever it takes is in ``learned`` afterwards.
        """

    @property
    def learned(self) -> dict[str, Any]:
        """What ``learn`` has taken, as JSON; checkpoints and exported folders keep it."""
        return {}

    @learned.setter
    def learned(self, values: Mapping[str, Any]) -> None:
        """Restore what an earlier run's ``learn`` has taken, before ``build``."""

    def check_rows(self, split: str, rows: Sequence[PreferenceRow]) -> None:
        """Raise a ``DataError`` if a row's columns can't be used, before a model loads.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
            rows: its rows.
        """

    def check_trainable(self) -> None:
        """Raise a ``ConfigError`` if training could not reach some weights, as after ``adapt``."""

    def update(self, batches: Iterable[ScoredBatch]) -> None:
        """Change what no gradient trains; called before each epoch but the first, if a head overrides it.

        Args:
            batches: this rank's share of the training rows, scored without gradient.
        """

    def check_adaptable(self, rows: Sequence[PreferenceRow], step: float | None) -> None:
        """Raise if ``adapt`` can't use these rows, before a model loads.

        Args:
            rows: labelled rows.
            step: the step of Hedge, for heads that take one.

        Raises:
            ContractError: by default: nothing in the head is fitted to a few pairs.
        """
        raise ContractError(
            f"{type(self).__name__} has neither users nor a router, and so nothing that a few pairs adapt: "
            "train it with `prefopt fit`."
        )

    def adapt(self, pairs: StatePairs, step: float | None) -> list[str]:
        """Fit what depends on a user or a context to a few pairs; everything else stays as it is.

        Args:
            pairs: those of the rows that ``check_adaptable`` has seen.
            step: likewise.

        Returns:
            Sentences about what was found. The head's ``learned`` and its state have it afterwards.
        """
        raise NotImplementedError

    def encode(self, column: str, texts: Sequence[str | None]) -> Tensor:
        """Return a number for each value of a column of texts, int64 [len(texts)].

        Raises:
            ContractError: by default: the head reads numbers only.
        """
        raise ContractError(
            f"{type(self).__name__} needs numbers in the column '{column}', but a row has the text "
            f"{texts[0]!r}."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to its device, but not to half precision, which Lightning's ``bf16-true`` sets."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            halved = result.dtype in (torch.bfloat16, torch.float16) and tensor.dtype != result.dtype
            return tensor.to(result.device) if halved and not tensor.is_meta else result

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments by name, as JSON, for checkpoints and exported folders."""
        taken = inspect.signature(type(self)).parameters.values()
        return {
            one.name: getattr(self, one.name)
            for one in taken
            if one.kind is one.KEYWORD_ONLY or one.kind is one.POSITIONAL_OR_KEYWORD
        }

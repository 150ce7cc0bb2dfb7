"""Lists and NumPy arrays as the inputs of metrics, and what is assumed where an input is left out."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.errors import ContractError
from pl_prefopt.types import ResponseLogProbs

_ROWS = ("reward", "scores", "present")
"""The inputs of shape [B, R]."""
_OTHERS = ("references", "graded", "loss", "counted")
_FLAGS = ("present", "graded", "counted")
_ARRAYS = (list, tuple, np.ndarray)


def taking_arrays(update: Callable[..., None]) -> Callable[..., None]:
    """Return a metric's ``update`` that also takes lists and NumPy arrays.

    A list may have prompts with different numbers of responses: absent ones are filled in, and ``present``
    says which. Rewards of two responses without ``scores`` are those of the chosen and the rejected one;
    ``graded``, if left out, is true, since scores were given.

    Tensors are passed on as they are.
    """
    parameters = [*inspect.signature(update).parameters.values()][1:]
    required = sum(one.default is one.empty for one in parameters)
    names = [one.name for one in parameters]

    @functools.wraps(update)
    def converted(self: Any, *args: Any, **kwargs: Any) -> None:
        values = (*args, *kwargs.values())
        if len(values) >= required and not any(map(_is_plain, values)):
            update(self, *args, **kwargs)
            return
        given = dict(zip(names, args, strict=False)) | kwargs
        update(self, **_with_defaults(type(self).__name__, names, _as_tensors(given)))

    return converted


def _is_plain(value: Any) -> bool:
    """Return whether a value has to be converted."""
    if isinstance(value, Mapping):
        return any(map(_is_plain, value.values()))
    return isinstance(value.sum if isinstance(value, ResponseLogProbs) else value, _ARRAYS)


def _as_tensors(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in _ROWS:
            found[name], present = _rows(name, value)
            if present is not None and given.get("present") is None:
                found["present"] = present
        elif name in _OTHERS and isinstance(value, _ARRAYS):
            found[name] = _tensor(name, value)
        elif isinstance(value, ResponseLogProbs):
            sums, lengths = _rows("policy.sum", value.sum)[0], _rows("policy.length", value.length)[0]
            found[name] = dataclasses.replace(value, sum=sums, length=lengths.long())
        elif name == "view_rewards":
            found[name] = {view: _rows(name, rewards)[0] for view, rewards in value.items()}
        else:
            found[name] = value
    return found


def _rows(name: str, value: Any) -> tuple[Any, Tensor | None]:
    """Return a [B, R] tensor, and where its responses are present if prompts have different numbers."""
    if not isinstance(value, _ARRAYS):
        return value, None
    lengths = {len(row) if isinstance(row, Sequence) else -1 for row in value}
    if len(lengths) > 1 and -1 not in lengths:
        widest = max(lengths)
        present = torch.tensor([[place < len(row) for place in range(widest)] for row in value])
        value = [[*row, *[0] * (widest - len(row))] for row in value]
    else:
        present = None
    tensor = _tensor(name, value)
    if tensor.dim() != 2:
        raise ContractError(
            f"expected `{name}` to have a row for each prompt with a number for each response, such as "
            f"[[1.2, 0.3], [0.1, 0.4]], got the shape {list(tensor.shape)}."
        )
    return tensor, present


def _tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ContractError(f"expected `{name}` to hold numbers in rows of equal length: {error}.") from error
    return tensor.bool() if name in _FLAGS else tensor.double()


def _with_defaults(metric: str, names: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    if "scores" in names and given.get("scores") is None:
        given["scores"] = _chosen_first(metric, given, needs_grades="graded" in names)
    if "graded" in names and given.get("graded") is None:
        given["graded"] = torch.ones(len(given["scores"]), dtype=torch.bool)
    return {name: value for name, value in given.items() if name in names}


def _chosen_first(metric: str, given: Mapping[str, Any], *, needs_grades: bool) -> Tensor:
    """Return the scores of a chosen and a rejected response."""
    policy, views = given.get("policy"), given.get("view_rewards") or {}
    values = given.get("reward", policy.sum if policy is not None else next(iter(views.values()), None))
    if needs_grades or values is None or values.shape[-1] != 2 or given.get("present") is not None:
        raise ContractError(
            f"{metric} needs `scores`, one per response: only two responses per prompt are taken for the "
            "chosen and the rejected one without them."
        )
    return torch.tensor([1.0, 0.0], device=values.device).expand(len(values), 2)

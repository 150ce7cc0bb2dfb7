"""Memory by purpose, counted tensor by tensor while a step runs, on real or fake tensors."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Classify = Callable[[Tensor], str]


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that operations create, until it is freed.

    Inside a ``FakeTensorMode`` this is the memory that a real step would take. A fake tensor has no values:
    ``item()`` returns 1.

    Args:
        classify: returns the part that a new tensor is counted in, outside of ``making``.
        shares: the fraction of a part that one device holds, by part; 1 by default.

    Attributes:
        peaks: by phase, one device's bytes of each part at the phase's peak.
    """

    def __init__(self, classify: Classify, shares: Mapping[str, float] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, Counter[str]] = {}
        self._classify, self._shares = classify, dict(shares or {})
        self._phase: str | None = None
        self._held: dict[int, tuple[str, int]] = {}
        self._parts: Counter[str] = Counter()
        self._total, self._most = 0, 0

    @property
    def parts(self) -> dict[str, int]:
        """The current bytes of each part on one device."""
        return dict(+self._parts)

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """Count tensors created in this context in ``part``."""
        before, self._classify = self._classify, lambda _: part
        try:
            yield
        finally:
            self._classify = before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak within this context under ``name``."""
        self._phase, self._most = name, -1
        self._note_peak()
        try:
            yield
        finally:
            self._phase = None

    def move(self, tensor: Tensor, part: str) -> None:
        """Count a tensor in another part from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._held:
            self._add(*self._held[key], sign=-1)
            self._held[key] = part, tensor.untyped_storage().nbytes()
            self._add(*self._held[key])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the tensors that it created."""
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _one(args[0].dtype)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return made

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            self._held[key] = self._classify(tensor), storage.nbytes()
            self._add(*self._held[key])
            weakref.finalize(storage, self._leave, key)
            self._note_peak()

    def _leave(self, key: int) -> None:
        self._add(*self._held.pop(key), sign=-1)

    def _add(self, part: str, size: int, sign: int = 1) -> None:
        held = sign * round(size * self._shares.get(part, 1))
        self._parts[part] += held
        self._total += held

    def _note_peak(self) -> None:
        if self._phase is not None and self._total > self._most:
            self.peaks[self._phase], self._most = +self._parts, self._total


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1

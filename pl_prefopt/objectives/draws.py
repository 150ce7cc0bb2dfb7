"""Random choices that a checkpoint can continue."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """A stream of random choices of its own.

    It starts from the seed of torch's global generator, which ``seed_everything`` sets, when it is first
    used. From then on it is apart: data loaders take numbers from the global one whenever they start, so
    that a resumed run would find that elsewhere. Numbers are made on the CPU and are the same for every
    device.
    """

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None

    @property
    def state(self) -> Tensor:
        """Where the stream is, for a checkpoint."""
        return self._stream().get_state()

    @state.setter
    def state(self, state: Tensor) -> None:
        self._stream().set_state(state.cpu())

    def choose(self, candidates: Tensor, count: int) -> Tensor:
        """Choose without replacement, each row for itself.

        Args:
            candidates: bool [..., N].
            count: how many of a row's true places to keep; all where there are no more.

        Returns:
            bool [..., N], true at the chosen places.
        """
        numbers = torch.rand(candidates.shape, generator=self._stream()).to(candidates.device)
        numbers = numbers.masked_fill(~candidates, -1.0)
        chosen = numbers.topk(min(count, candidates.shape[-1]), dim=-1).indices
        return torch.zeros_like(candidates).scatter(-1, chosen, True) & candidates

    def _stream(self) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(torch.initial_seed())
        return self._generator

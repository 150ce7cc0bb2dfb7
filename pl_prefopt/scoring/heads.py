"""Running a model and reading its hidden states: by its own forward pass, or body and head separately."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.scoring.inputs import base_model, last_logits, without_first
from pl_prefopt.scoring.output_layers import (
    ChunkedLayer,
    FusedLayer,
    LogitTransform,
    OutputLayer,
    WholeLayer,
)
from pl_prefopt.scoring.readouts import Readout, Tokens
from pl_prefopt.scoring.sharded import as_forward


class Reading(NamedTuple):
    """A readout and the positions that it reads.

    Attributes:
        readout: a function of hidden states.
        source: int64 [N], the positions, as row · L + column.
    """

    readout: Readout
    source: Tensor


class Head(ABC):
    """A way of running a model and reading its hidden states at chosen positions."""

    @abstractmethod
    def read(
        self, model: nn.Module, readings: Sequence[Reading], tokens: Tokens, start: int, **inputs: Any
    ) -> tuple[Tensor, ...]:
        """Run ``model`` on ``inputs`` once and return the values of each of ``readings``.

        Args:
            model: the policy or a reference.
            readings: the readouts and their positions.
            tokens: the response tokens.
            start: no column before this one is read.
            inputs: the arguments of the model's ``forward``, for rows of L columns.
        """

    @abstractmethod
    def layer(self, model: nn.Module) -> OutputLayer:
        """Return the layer that maps the readouts' hidden states to logits, outside the model's forward."""


class WholeLogits(Head):
    """Runs the model's own forward pass, or its body where no readout takes logits.

    Works with every causal model.
    """

    def read(
        self, model: nn.Module, readings: Sequence[Reading], tokens: Tokens, start: int, **inputs: Any
    ) -> tuple[Tensor, ...]:
        """Run ``model`` on ``inputs`` once and return what each of ``readings`` gives."""
        if all(reading.readout.of_states for reading in readings):
            return _read_states(model, readings, tokens, WholeLayer, inputs)
        width = inputs["input_ids"].shape[1]
        states: list[Tensor] = []
        with ExitStack() as hooks:
            if any(reading.readout.of_states for reading in readings):
                hook = base_model(model).base_model.register_forward_hook(
                    lambda _model, _args, output: states.append(output.last_hidden_state)
                )
                hooks.callback(hook.remove)
            logits = last_logits(model, width - start, **inputs).flatten(0, 1)

        def values(reading: Reading) -> Tensor:
            if reading.readout.of_states:
                return states[0].flatten(0, 1)[reading.source]
            return logits[without_first(reading.source, start, width)]

        return tuple(one.readout(values(one), WholeLayer(), tokens) for one in readings)

    def layer(self, model: nn.Module) -> OutputLayer:
        """Return the identity layer, since the readouts get logits."""
        return WholeLayer()


class SplitHead(Head):
    """Runs the model's body, and computes logits and log-probs from its hidden states separately.

    Args:
        layer: the output layer that computes them.
    """

    def __init__(self, layer: type[ChunkedLayer]) -> None:
        self._layer = layer

    def read(
        self, model: nn.Module, readings: Sequence[Reading], tokens: Tokens, start: int, **inputs: Any
    ) -> tuple[Tensor, ...]:
        """Run ``model`` on ``inputs`` once and return what each of ``readings`` gives."""
        return _read_states(model, readings, tokens, lambda: self._of(base_model(model)), inputs)

    def layer(self, model: nn.Module) -> OutputLayer:
        """Return the output layer of ``model``, with gathered copies of sharded weights."""
        layer = self._of(base_model(model))
        sharded = isinstance(model, FSDPModule) and not any(w.requires_grad for w in model.parameters())
        return layer.gathered() if sharded else layer

    def _of(self, base: Any) -> ChunkedLayer:
        return self._layer(base.get_output_embeddings(), LogitTransform.of(base.config.get_text_config()))


class ChunkedHead(SplitHead):
    """Computes logits for one chunk of positions at a time."""

    def __init__(self) -> None:
        super().__init__(ChunkedLayer)


class FusedHead(SplitHead):
    """Computes log-probs with a GPU kernel that never writes logits to memory."""

    def __init__(self) -> None:
        super().__init__(FusedLayer)


def _read_states(
    model: nn.Module,
    readings: Sequence[Reading],
    tokens: Tokens,
    layer: Callable[[], OutputLayer],
    inputs: dict[str, Any],
) -> tuple[Tensor, ...]:
    """Run the body of ``model`` and apply readouts to its last hidden states."""
    body = base_model(model).base_model

    def compute() -> tuple[Tensor, ...]:
        states = body(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        made = layer()
        return tuple(one.readout(states[one.source], made, tokens) for one in readings)

    return as_forward(model, compute)

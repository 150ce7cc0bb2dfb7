"""What can be read from one pass of a model, at the positions that predict or end responses and prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ContractError
from pl_prefopt.requests import Direction, Place
from pl_prefopt.scoring.inputs import at_least_float32
from pl_prefopt.scoring.output_layers import OutputLayer

Positions = Literal["tokens"] | Place
"""``tokens``: those that predict a response token. ``response``, ``prompt``: the last token of each."""


class Tokens(NamedTuple):
    """All M response tokens, in order, without padding.

    Attributes:
        label: int64 [M], their ids.
        number: int64 [M], their numbers in [B · R · T].
    """

    label: Tensor
    number: Tensor


class Readout(ABC):
    """A function of the hidden states at positions of one kind.

    Attributes:
        at: the positions.
        of_states: whether it is a function of the last hidden states proper; other readouts may be handed
            logits in their place, where a model's logits are computed whole.
    """

    at: Positions = "tokens"
    of_states: bool = False

    @abstractmethod
    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return one or more numbers per position, [N] or [N, J].

        Args:
            hidden: [N, D], N = M at ``tokens``.
            layer: what turns them into logits.
            tokens: the response tokens.
        """

    def part(self, rows: Tensor) -> Readout:
        """Return the readout of the batch's rows with these numbers."""
        return self


class LogProbs(Readout):
    """The log-prob of each response token, [M]."""

    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return float32 [M]."""
        return layer.log_probs(hidden, tokens.label)


class Collisions(Readout):
    """log Σ_v π(v)² of the distribution that predicts each response token, [M], without gradient.

    Logits are computed a second time, in chunks: computed along with the log-probs, an unused gradient would
    be stored.
    """

    @torch.no_grad()
    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return float32 [M]."""
        return layer.apply(log_collisions, hidden).squeeze(-1)


class HiddenStates(Readout):
    """The hidden states that predict response tokens, [M, D]; what a layer turns into logits."""

    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return [M, D], as they are."""
        return hidden


class TokenStates(Readout):
    """The last hidden states that predict response tokens, [M, D], without gradient, in float32 or better."""

    of_states = True

    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return [M, D]."""
        return at_least_float32(hidden.detach())


@dataclass(frozen=True)
class Outputs(Readout):
    """The outputs of a head at the last token of each response or prompt.

    Attributes:
        head: from [N, D] to [N, O].
        at: where.
    """

    head: nn.Module
    at: Place = "response"
    of_states = True

    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return float32 [N, O]."""
        weight = next(self.head.parameters(), hidden)
        outputs: Tensor = self.head(hidden.to(weight.dtype))
        return at_least_float32(outputs)


@dataclass(frozen=True)
class EndStates(Readout):
    """The last hidden state at the last token of each response or prompt, [N, D], in float32 or better.

    Attributes:
        at: where.
    """

    at: Place = "response"
    of_states = True

    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return [N, D]."""
        return at_least_float32(hidden)


@dataclass(frozen=True)
class Vocabulary:
    """A reference's distributions over the vocabulary, as hidden states: logits are formed chunk by chunk.

    Attributes:
        states: [B, R, T, D], the states that predict response tokens, without gradient.
        layer: what turns them into logits.
        running: enters whatever makes the shared model the reference, such as adapters switched off.
    """

    states: Tensor
    layer: OutputLayer
    running: Callable[[], AbstractContextManager[object]]

    def log_softmax(self, states: Tensor, device: torch.device) -> Tensor:
        """Return float32 log-probs [m, V] of some of the states [m, D], on the policy's device."""
        with torch.no_grad(), self.running():
            return self.layer.logits(states).log_softmax(dim=-1).to(device)


@dataclass(frozen=True)
class DivergingLogProbs(Readout):
    """The log-prob of each response token, and the KL divergences between policy and references before it.

    Attributes:
        vocabularies: of K references.
        directions: of the divergences.
    """

    vocabularies: tuple[Vocabulary, ...]
    directions: tuple[Direction, ...]

    def __call__(self, hidden: Tensor, layer: OutputLayer, tokens: Tokens) -> Tensor:
        """Return float32 [M, 1 + K · directions]: the log-prob, then each reference's divergences."""
        states = [one.states.flatten(0, 2)[tokens.number.to(one.states.device)] for one in self.vocabularies]

        def numbers(logits: Tensor, labels: Tensor, *states: Tensor) -> Tensor:
            policy = logits.log_softmax(dim=-1)
            found = [policy.gather(-1, labels.unsqueeze(-1)).squeeze(-1)]
            for vocabulary, own in zip(self.vocabularies, states, strict=True):
                reference = vocabulary.log_softmax(own, logits.device)
                if reference.shape != policy.shape:
                    raise ContractError(
                        f"A KL divergence needs references with the policy's vocabulary of "
                        f"{policy.shape[-1]} tokens, but one has {reference.shape[-1]}: use a model of the "
                        "policy's family."
                    )
                found += [divergence(policy, reference, direction) for direction in self.directions]
            return torch.stack(found, dim=-1)

        return layer.apply(numbers, hidden, tokens.label, *states)

    def part(self, rows: Tensor) -> Readout:
        """Return the readout of the batch's rows with these numbers."""
        vocabularies = tuple(
            replace(one, states=one.states[rows.to(one.states.device)]) for one in self.vocabularies
        )
        return replace(self, vocabularies=vocabularies)


def log_collisions(logits: Tensor) -> Tensor:
    """Return log Σ_v π(v)² of the distributions over the last dimension, [m, 1].

    >>> log_collisions(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).exp().flatten().tolist()
    [0.5, 1.0]
    """
    return (2 * logits.log_softmax(dim=-1)).logsumexp(dim=-1, keepdim=True)


def divergence(policy: Tensor, reference: Tensor, direction: Direction) -> Tensor:
    """Return the KL divergence of distributions over the last dimension, given as log-probs.

    >>> half, skew = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> [round(divergence(half, skew, direction).item(), 4) for direction in ("reverse", "forward")]
    [0.1438, 0.1308]
    """
    first, second = (policy, reference) if direction == "reverse" else (reference, policy)
    # Tokens to which the first gives probability 0 (log-prob -inf) contribute 0.
    ratio = (first - second).masked_fill(first.isneginf(), 0.0)
    return (first.exp() * ratio).sum(dim=-1)

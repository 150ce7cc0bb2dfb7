"""Requests of objectives beyond one log-prob per response: per-token values and outputs of heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from torch import nn

from pl_prefopt.errors import ConfigError

Direction = Literal["forward", "reverse"]
"""Of a KL divergence: ``forward`` is KL(π_ref ‖ π_θ), ``reverse`` is KL(π_θ ‖ π_ref)."""
Place = Literal["response", "prompt"]
"""Where a head reads: at the last token of each response, or of each prompt."""
HeadKind = Literal["rewards", "embedding", "mixture"]
"""What the outputs of a reward head are: a reward each, an embedding of pairs of numbers, or the rewards of a
mixture followed by its log-weights."""
REWARD = "reward"
"""The name in ``ScoredBatch.outputs`` of what a ``RewardModule``'s head gives: [B, R, J]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A request for values per response token of the plain view.

    Attributes:
        kl: the KL divergences between the policy's and each reference's distribution over the vocabulary,
            at each position that predicts a response token.
        references: whether the references' log-probs are needed as well as the policy's. Each reference must
            then be a model that reads the policy's tokens, and likewise for ``kl``.
        collisions: whether log Σ_v π_θ(v)² is needed, the logarithm of the probability that two tokens
            sampled from the policy at the same position are equal.
        steps: whether the number of each token's step is needed, a step being a line of a response.
        states: whether the policy's last hidden states are needed, without gradient.
    """

    kl: tuple[Direction, ...] = ()
    references: bool = True
    collisions: bool = False
    steps: bool = False
    states: bool = False

    def __post_init__(self) -> None:
        unknown = [direction for direction in self.kl if direction not in ("forward", "reverse")]
        if unknown:
            raise ConfigError(f"expected `kl` of 'forward' or 'reverse', got '{unknown[0]}'.")

    @property
    def asks_references(self) -> bool:
        """Whether references must be models that read the policy's tokens."""
        return self.references or bool(self.kl)

    @classmethod
    def of_all(cls, requests: Sequence[Self]) -> Self:
        """Return the request for everything that any of ``requests``, at least one, asks for."""
        return cls(
            kl=tuple(sorted({direction for request in requests for direction in request.kl})),
            references=any(request.references for request in requests),
            collisions=any(request.collisions for request in requests),
            steps=any(request.steps for request in requests),
            states=any(request.states for request in requests),
        )


class OutputHead(ABC):
    """A head on the policy's hidden states, trained with the policy and saved in its checkpoints.

    Attributes:
        at: the tokens whose hidden states it reads.
    """

    at: Place

    @abstractmethod
    def build(self, hidden_size: int) -> nn.Module:
        """Return the head: from hidden states [N, hidden_size] to outputs [N, O]."""


@dataclass(frozen=True)
class LinearHead(OutputHead):
    """A linear map, initialised with a standard deviation of 1/√(D + 1), D the hidden size.

    Args:
        outputs: O, the number of outputs per place.
        at: the last token of each ``response``, or of each ``prompt``.

    Raises:
        ConfigError: if ``outputs`` is below 1 or ``at`` is neither.
    """

    outputs: int = 1
    at: Place = "response"

    def __post_init__(self) -> None:
        if self.outputs < 1:
            raise ConfigError(f"expected `outputs` of at least 1, got {self.outputs}.")
        if self.at not in ("response", "prompt"):
            raise ConfigError(f"expected `at` to be 'response' or 'prompt', got '{self.at}'.")

    def build(self, hidden_size: int) -> nn.Module:
        """Return a linear layer without bias."""
        head = nn.Linear(hidden_size, self.outputs, bias=False)
        nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5)
        return head


@dataclass(frozen=True)
class HiddenState(OutputHead):
    """The hidden state itself, without a head: H outputs.

    Args:
        at: the last token of each ``response``, or of each ``prompt``.
    """

    at: Place = "response"

    def build(self, hidden_size: int) -> nn.Module:
        """Return the identity."""
        del hidden_size
        return nn.Identity()

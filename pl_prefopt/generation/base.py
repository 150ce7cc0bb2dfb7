"""The engine protocol: prompts as tokens in; samples with log-probs, finish reasons and seeds out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from pl_prefopt.errors import ConfigError, RunError

FinishReason = Literal["stop", "length"]
"""Why a response ended: at an end token, or at the limit of tokens."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        n: samples per prompt.
        temperature: of the softmax; 0 takes the most probable token (greedy decoding).
        top_p: sample from the smallest set of tokens with this much probability; 1 is no limit.
        top_k: sample from the so many most probable tokens; 0 is no limit.
        max_new_tokens: maximum number of tokens of a response, its end token included.
        seed: the random seed; the seed of each sample follows from it, the prompt's number and the sample's.
    """

    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("max_new_tokens", 1), ("temperature", 0), ("top_k", 0)):
            value = getattr(self, name)
            if not value >= least:
                raise ConfigError(f"expected `sampling.{name}` to be at least {least}, got {value}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"expected `sampling.top_p` to be above 0 and at most 1, got {self.top_p}.")

    def seeds(self, prompt: int) -> list[int]:
        """Return the seeds of a prompt's samples; they don't depend on ``n`` or on other prompts."""
        return [sample_seed(self.seed, prompt, sample) for sample in range(self.n)]


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    """Return the seed of one sample, 48 bits.

    Args:
        seed: the seed of all.
        prompt: the prompt's number.
        sample: the sample's number.

    Examples:
        >>> sample_seed(0, 3, 1) == sample_seed(0, 3, 1), sample_seed(0, 3, 1) == sample_seed(0, 1, 3)
        (True, False)
    """
    text = f"{seed}/{prompt}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


class Sample(NamedTuple):
    """One sampled response.

    Attributes:
        token_ids: its tokens, with the end token if it ends with one.
        log_probs: the engine's log-prob of each token at temperature 1, without top-p and top-k; empty if the
            engine reports none.
        finish_reason: ``stop`` at an end token, ``length`` at the limit.
        seed: the seed that it was sampled with.
        text: the text as the engine returned it, where it returned no token ids; else ``None``.
    """

    token_ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason
    seed: int
    text: str | None = None


class RefusedPromptError(RunError):
    """An engine that refuses a prompt, such as one that is too long; other prompts may do."""


class Engine(ABC):
    """Samples responses of one policy. It is a context manager: what it started or loaded ends with it."""

    def __enter__(self) -> Self:
        """Start or load what is needed."""
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - an engine may have nothing to free
        """Stop or free it."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What determines the samples in addition to prompts and settings; a resumed run checks it."""

    def longest_prompt(self, sampling: Sampling) -> int | None:
        """Return how many tokens a prompt may have; ``None`` if the engine doesn't know.

        Args:
            sampling: the settings of the responses, which need room too.
        """
        return None

    @abstractmethod
    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, one per seed.

        Args:
            prompts: token ids of each prompt.
            seeds: the seeds of each prompt's samples.
            sampling: the settings; ``n`` and ``seed`` are not read.

        Raises:
            RefusedPromptError: if it refuses one of the prompts.
            RunError: if the engine fails or returns fewer samples.
        """

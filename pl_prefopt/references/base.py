"""What every reference is: something frozen that gives each response a log-prob."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pl_prefopt.data import PreferenceDataset
from pl_prefopt.errors import ContractError
from pl_prefopt.policies import Make, PolicySpec
from pl_prefopt.requests import TokenRequest
from pl_prefopt.scoring import Scorer, Vocabulary
from pl_prefopt.types import PreferenceBatch
from pl_prefopt.views import View

Datasets = Mapping[str, PreferenceDataset]


class PolicyHost(Protocol):
    """What a reference may use of the module that is trained."""

    policy: nn.Module
    policy_spec: PolicySpec
    scorer: Scorer
    start: dict[str, Tensor]
    """Trained weights before the first step, by name; empty where the adapter switched off is that start."""

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""

    def load(self, spec: PolicySpec, build: Make, sketch: Make) -> nn.Module:
        """Return what ``build`` loads, its weights split between the processes if the policy's are."""

    @property
    def views(self) -> Mapping[str, View]:
        """The second views that are scored beside the plain one."""

    @property
    def tokens(self) -> TokenRequest | None:
        """The numbers per token that the objective asked for."""


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswers:
    """What K references give for a batch, without gradient.

    Attributes:
        log_probs: float32 [K, B, R] sums of log-probs per view.
        tokens: float32 [K, B, R, T], log-probs of the response tokens, if the objective asked for tokens.
        vocabularies: each reference's distributions over the vocabulary, if it asked for KL divergences.
    """

    log_probs: Mapping[str, Tensor]
    tokens: Tensor | None = None
    vocabularies: tuple[Vocabulary, ...] = ()


class ReferenceSource(ABC):
    """What a module pulls its references' numbers from; found among the trainer's callbacks."""

    @property
    @abstractmethod
    def num_references(self) -> int:
        """K."""

    @abstractmethod
    def answer(self, host: PolicyHost, batch: PreferenceBatch) -> ReferenceAnswers:
        """Return what the references give for ``batch``; load them if that has not been done.

        Args:
            host: the module, whose ``views`` and ``tokens`` say what is asked for.
            batch: the rows.
        """


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a reference takes of the policy's device while the policy trains.

    Attributes:
        model: a model of its own that lives there.
        adapter: the folder of an adapter that lives there, beside the policy's own.
        start: whether a second copy of what the policy trains lives there.
        stays: whether ``model`` or ``start`` stays between batches.
        split: whether processes divide ``model`` where they divide the policy.
        scores: whether every batch costs a forward pass there.
    """

    model: PolicySpec | None = None
    adapter: str | None = None
    start: bool = False
    stays: bool = True
    split: bool = False
    scores: bool = True


class Running(NamedTuple):
    """A reference's model and what scores with it."""

    model: nn.Module
    scorer: Scorer


class Reference(ABC):
    """A frozen distribution over responses."""

    precomputable: ClassVar[bool] = True
    """Whether its log-probs may be computed once and kept; false where they are kept already."""
    live: ClassVar[bool] = False
    """Whether it is a model on the policy's tokens, which ``running`` hands out for numbers per token."""

    needs_rows: ClassVar[bool] = False
    """Whether ``prepare`` must see all rows that ``log_probs`` is asked for later."""

    def check(self, policy: PolicySpec) -> None:  # noqa: B027 - most references work with every policy
        """Raise an error if this reference can't work beside ``policy``; no model is loaded yet."""

    @abstractmethod
    def fingerprint(self, policy: PolicySpec) -> str:
        """A string that differs whenever the log-probs may."""

    def held(self, policy: PolicySpec) -> Held | None:
        """What it takes of the policy's device; ``None`` if nobody said, and `prefopt plan` says so."""
        return None

    @abstractmethod
    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Make ready to score the rows of ``datasets`` (by split) on the policy's device. May be repeated."""

    @abstractmethod
    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return Σ_t log π_ref(y_t | x, y_<t) of each response, float32 [B, R], without gradient."""

    def running(self, host: PolicyHost) -> AbstractContextManager[Running]:
        """Return a context in which the reference's model can be run on the policy's tokens.

        Raises:
            ContractError: if it is not ``live``.
        """
        raise ContractError(f"{type(self).__name__} gives one log-prob per response, and nothing per token.")

    @abstractmethod
    def release(self) -> None:
        """Free the memory that ``prepare`` took."""

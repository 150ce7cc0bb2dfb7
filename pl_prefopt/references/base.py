"""The interface of references: frozen distributions that give each response a log-prob."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

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
    """The attributes of the trained module that a reference may use."""

    policy: nn.Module
    policy_spec: PolicySpec
    scorer: Scorer
    start: dict[str, Tensor]
    """Trained weights before the first step, by name; empty where disabling the adapter restores them."""

    @property
    def device(self) -> torch.device:
        """The policy's device."""

    def load(self, spec: PolicySpec, build: Make, sketch: Make) -> nn.Module:
        """Return the model that ``build`` loads, sharded if the policy is."""

    @property
    def views(self) -> Mapping[str, View]:
        """The second views, scored in addition to the plain one."""

    @property
    def reference_tokens(self) -> TokenRequest | None:
        """The per-token values that the objective requests of references; ``None`` if there are none."""


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswers:
    """The answers of K references for a batch, without gradient.

    Attributes:
        log_probs: float32 [K, B, R] sums of log-probs per view.
        tokens: float32 [K, B, R, T], log-probs of the response tokens, if the objective requests tokens.
        vocabularies: each reference's distributions over the vocabulary, if it requests KL divergences.
    """

    log_probs: Mapping[str, Tensor]
    tokens: Tensor | None = None
    vocabularies: tuple[Vocabulary, ...] = ()


class ReferenceSource(ABC):
    """The interface through which a module queries its references; one of the trainer's callbacks."""

    @property
    @abstractmethod
    def num_references(self) -> int:
        """K, the number of references."""

    @abstractmethod
    def answer(self, host: PolicyHost, batch: PreferenceBatch) -> ReferenceAnswers:
        """Return the references' answers for ``batch``; load the references on the first call.

        Args:
            host: the module, whose ``views`` and ``reference_tokens`` are the request.
            batch: the rows.
        """

    def state(self) -> dict[str, Any]:
        """Return the states of references that follow the policy, by position; empty if all are frozen."""
        return {}

    def restore(  # noqa: B027 - sources of frozen references have no state
        self, host: PolicyHost, states: Mapping[str, Any], *, training: bool
    ) -> None:
        """Continue from the ``state`` of a checkpoint.

        Args:
            host: the module, with its policy.
            states: the checkpoint's; empty if it has none.
            training: whether the run trains on.
        """


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A reference's memory footprint on the policy's device during training.

    Attributes:
        model: a model of its own on that device.
        adapter: the folder of an adapter loaded alongside the policy's own.
        start: whether it holds a second copy of the policy's trained weights.
        resident: whether ``model`` or ``start`` remains on the device between batches.
        split: whether ``model`` is sharded where the policy is.
        scores: whether every batch takes a forward pass there.
    """

    model: PolicySpec | None = None
    adapter: str | None = None
    start: bool = False
    resident: bool = True
    split: bool = False
    scores: bool = True


class Running(NamedTuple):
    """A reference's model and the scorer to run it with."""

    model: nn.Module
    scorer: Scorer


class Reference(ABC):
    """A frozen distribution over responses."""

    precomputable: ClassVar[bool] = True
    """Whether its log-probs may be precomputed; false where they already are."""
    live: ClassVar[bool] = False
    """Whether it is a model on the policy's tokens, available through ``running`` for per-token values."""

    follows_policy: ClassVar[bool] = False
    """Whether it changes with the policy during training, and so has a state in checkpoints."""

    needs_rows: ClassVar[bool] = False
    """Whether ``prepare`` needs all rows that ``log_probs`` will be called with."""

    def check(self, policy: PolicySpec) -> None:  # noqa: B027 - most references work with every policy
        """Raise an error if this reference is incompatible with ``policy``; no model is loaded yet."""

    @abstractmethod
    def fingerprint(self, policy: PolicySpec) -> str:
        """Return a string that differs whenever the log-probs may differ."""

    def footprint(self, policy: PolicySpec) -> Footprint | None:
        """Return its memory footprint on the policy's device; ``None`` if it states none."""
        return None

    @abstractmethod
    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Prepare to score the rows of ``datasets`` (by split). May be called repeatedly."""

    @abstractmethod
    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return Σ_t log π_ref(y_t | x, y_<t) of each response, float32 [B, R], without gradient."""

    def running(self, host: PolicyHost) -> AbstractContextManager[Running]:
        """Return a context in which the reference's model can be run on the policy's tokens.

        Raises:
            ContractError: if it isn't ``live``.
        """
        raise ContractError(
            f"{type(self).__name__} gives one log-prob per response, and no per-token values."
        )

    def follow(self, host: PolicyHost, step: int) -> None:  # noqa: B027 - most references are frozen
        """Note that the policy has taken ``step`` optimiser steps; called before and after each batch."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of a reference that follows the policy."""
        return {}

    def restore(self, host: PolicyHost, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Continue from the ``state`` of a checkpoint; the policy is there, and may not be prepared for."""

    @abstractmethod
    def release(self) -> None:
        """Free the memory that ``prepare`` allocated."""

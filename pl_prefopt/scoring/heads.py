"""From a model to log-probs of tokens, without holding the logits of a whole batch where that can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pl_prefopt.scoring.inputs import base_model, label_log_probs, last_logits, without_first
from pl_prefopt.scoring.sharded import as_forward

CHUNK_ELEMENTS = 2**25
"""Logits held at a time: 128 MiB in float32."""

_ToLogits = Callable[[Tensor], Tensor]


class Head(ABC):
    """A way of computing log-probs of labels at chosen positions."""

    @abstractmethod
    def log_probs(
        self, model: nn.Module, labels: Tensor, source: Tensor, start: int, **inputs: Any
    ) -> Tensor:
        """Run ``model`` on ``inputs`` and return log π of each label, float32 [M].

        Args:
            model: the policy or a reference.
            labels: int64 [M].
            source: int64 [M], the position that predicts each label, as row · L + column.
            start: no column before this one predicts anything.
            inputs: what the model's ``forward`` takes, for N rows of L columns.
        """


class WholeLogits(Head):
    """The model's own forward pass. Works with every causal model."""

    def log_probs(
        self, model: nn.Module, labels: Tensor, source: Tensor, start: int, **inputs: Any
    ) -> Tensor:
        """Run ``model`` on ``inputs`` and return log π of each label, float32 [M]."""
        width = inputs["input_ids"].shape[1]
        logits = last_logits(model, width - start, **inputs)
        return label_log_probs(logits.flatten(0, 1)[without_first(source, start, width)], labels)


class SplitHead(Head):
    """The model's body, then its output embeddings by a way of one's own."""

    def log_probs(
        self, model: nn.Module, labels: Tensor, source: Tensor, start: int, **inputs: Any
    ) -> Tensor:
        """Run ``model`` on ``inputs`` and return log π of each label, float32 [M]."""
        base = base_model(model)

        def compute() -> Tensor:
            hidden = base.base_model(**inputs, use_cache=False).last_hidden_state
            bend = Bend.of(base.config.get_text_config())
            predicting = hidden.flatten(0, 1)[source]
            return self.label_log_probs(base.get_output_embeddings(), bend, predicting, labels)

        return as_forward(model, compute)

    @abstractmethod
    def label_log_probs(self, embeddings: Any, bend: Bend, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M], given the hidden states [M, D] that predict them."""


@dataclass(frozen=True)
class Bend:
    """What some families do to their logits; a probe compares with the model's own.

    Attributes:
        factor: what they are multiplied with.
        cap: the bound c of the range (-c, c) that they are then bent into by tanh; ``None`` for no bound.
    """

    factor: float
    cap: float | None

    @classmethod
    def of(cls, config: Any) -> Bend:
        """Read a model's configuration."""
        factor = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(factor, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the bent logits."""
        if self.factor != 1:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class ChunkedHead(SplitHead):
    """Some positions at a time.

    A frozen head costs what it always does: each token's gradient is computed along with its log-prob, and
    the logits are forgotten. A head that is trained is run again in the backward pass.
    """

    def label_log_probs(self, embeddings: Any, bend: Bend, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M], given the hidden states [M, D] that predict them."""

        def to_logits(hidden: Tensor) -> Tensor:
            return bend(embeddings(hidden)).float()

        size = max(1, CHUNK_ELEMENTS // embeddings.weight.shape[0])
        trained = any(weight.requires_grad for weight in embeddings.parameters())
        return _in_chunks(to_logits, hidden, labels, size=size, trained=trained)


class FusedHead(SplitHead):
    """One GPU kernel that never writes the logits to memory: that of cut-cross-entropy.

    Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv 2411.09009. Its gradients
    leave nothing out, as the paper's would with its filter on.
    """

    def label_log_probs(self, embeddings: Any, bend: Bend, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M], given the hidden states [M, D] that predict them."""
        from cut_cross_entropy import linear_cross_entropy

        if type(embeddings) is not nn.Linear or embeddings.bias is not None:
            raise TypeError("the kernel knows output embeddings of one weight only")
        nll = linear_cross_entropy(
            hidden * bend.factor if bend.factor != 1 else hidden,
            embeddings.weight,
            labels,
            softcap=bend.cap,
            reduction="none",
            filter_eps=None,
        )
        return -nll.float()


def _in_chunks(to_logits: _ToLogits, hidden: Tensor, labels: Tensor, *, size: int, trained: bool) -> Tensor:
    def score(hidden: Tensor, labels: Tensor) -> Tensor:
        return label_log_probs(to_logits(hidden), labels)

    chunks = list(zip(torch.split(hidden, size), torch.split(labels, size), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([score(*chunk) for chunk in chunks])
    if trained:
        return torch.cat([checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([_WithGradient.apply(to_logits, *chunk) for chunk in chunks])  # type: ignore[no-untyped-call]


class _WithGradient(torch.autograd.Function):
    """Computes each log-prob together with its gradient, which is all that the backward pass needs."""

    @staticmethod
    def forward(ctx: Any, to_logits: _ToLogits, hidden: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            logits = to_logits(leaf)
        values, labels = logits.detach(), labels.unsqueeze(1)
        total = values.logsumexp(dim=1, keepdim=True)
        log_probs = (values.gather(1, labels) - total).squeeze(1)
        # d log π / d logits = 1[label] - π, written over the logits: they are the largest thing in memory.
        outer = values.sub_(total).exp_().neg_()
        outer.scatter_add_(1, labels, torch.ones_like(total))
        (gradient,) = torch.autograd.grad(logits, leaf, outer)
        ctx.save_for_backward(gradient)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, (outer[0].unsqueeze(-1) * gradient).to(gradient.dtype), None

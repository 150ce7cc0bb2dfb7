"""From a model to log-probs of tokens, without holding the logits of a whole batch where that can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pl_prefopt.scoring.inputs import base_model, label_log_probs, last_logits

CHUNK_ELEMENTS = 2**25
"""Logits held at a time: 128 MiB in float32."""

_Score = Callable[[Tensor, Tensor], Tensor]


class Head(ABC):
    """A way of computing log-probs of labels at chosen positions."""

    @abstractmethod
    def log_probs(
        self, model: nn.Module, labels: Tensor, source: Tensor, start: int, **inputs: Any
    ) -> Tensor:
        """Run ``model`` on ``inputs`` and return log π of each label, float32 [N, W].

        Args:
            model: the policy or a reference.
            labels: int64 [N, W].
            source: int64 [N, W], the position that predicts each label, counted from ``start``.
            start: the first position that predicts anything.
            inputs: what the model's ``forward`` takes, for N rows.
        """


class WholeLogits(Head):
    """The model's own forward pass. Works with every causal model."""

    def log_probs(
        self, model: nn.Module, labels: Tensor, source: Tensor, start: int, **inputs: Any
    ) -> Tensor:
        """Run ``model`` on ``inputs`` and return log π of each label, float32 [N, W]."""
        logits = last_logits(model, inputs["input_ids"].shape[1] - start, **inputs)
        row = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        chosen = logits[row, source, labels].float()
        return chosen - logits.float().logsumexp(dim=-1).gather(1, source)


class ChunkedHead(Head):
    """The model's body, then its output embeddings on a few positions at a time.

    A frozen head costs what it always does: each token's gradient is computed along with its log-prob, and
    the logits are forgotten. A head that is trained is run again in the backward pass.
    """

    def log_probs(
        self, model: nn.Module, labels: Tensor, source: Tensor, start: int, **inputs: Any
    ) -> Tensor:
        """Run ``model`` on ``inputs`` and return log π of each label, float32 [N, W]."""
        base = base_model(model)
        hidden = base.base_model(**inputs, use_cache=False).last_hidden_state[:, start:]
        row = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        embeddings = base.get_output_embeddings()
        score = _scorer(embeddings, base.config.get_text_config())
        flat = hidden[row, source].flatten(0, 1), labels.flatten()
        size = max(1, CHUNK_ELEMENTS // embeddings.weight.shape[0])
        trained = any(weight.requires_grad for weight in embeddings.parameters())
        return _in_chunks(score, *flat, size=size, trained=trained).view(labels.shape)


def _scorer(embeddings: nn.Module, config: Any) -> _Score:
    """Return the function from hidden states [M, D] and labels [M] to log-probs [M].

    Some families scale their logits, or bend them into a range; a probe compares with the model's own.
    """
    factor = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None)

    def score(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = embeddings(hidden)
        if factor != 1:
            logits = logits * factor
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return label_log_probs(logits, labels)

    return score


def _in_chunks(score: _Score, hidden: Tensor, labels: Tensor, *, size: int, trained: bool) -> Tensor:
    chunks = list(zip(torch.split(hidden, size), torch.split(labels, size), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([score(*chunk) for chunk in chunks])
    if trained:
        return torch.cat([checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([_WithGradient.apply(score, *chunk) for chunk in chunks])  # type: ignore[no-untyped-call]


class _WithGradient(torch.autograd.Function):
    """Computes each log-prob together with its gradient, which is all that the backward pass needs."""

    @staticmethod
    def forward(ctx: Any, score: _Score, hidden: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            log_probs = score(leaf, labels)
            # A log-prob depends on its own hidden state alone, so the sum's gradient is that of each.
            (gradient,) = torch.autograd.grad(log_probs.sum(), leaf)
        ctx.save_for_backward(gradient)
        return log_probs.detach()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, (outer[0].unsqueeze(-1) * gradient).to(gradient.dtype), None

"""From hidden states to logits and log-probs, without the logits of a whole batch at once where possible."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pl_prefopt.scoring.inputs import at_least_float32, label_log_probs

CHUNK_ELEMENTS = 2**25
"""Logits in memory at a time: 128 MiB in float32."""
_COPIES = 4
"""An estimate of how many tensors as large as the logits a function of them keeps for its gradient."""

FromLogits = Callable[..., Tensor]
"""Takes float32 logits [m, V] and further tensors [m, ...]; returns [m, J]."""


@dataclass(frozen=True)
class LogitTransform:
    """Scaling and soft-capping of logits, as some families have them; a probe compares with the model's own.

    Attributes:
        factor: what logits are multiplied by.
        cap: soft-capping: logits become c·tanh(logits / c); ``None`` for none.
    """

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read a model's configuration."""
        factor = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(factor, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the transformed logits."""
        if self.factor != 1:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class OutputLayer(ABC):
    """What follows a model's last hidden state, applied at chosen positions.

    Attributes:
        adapted: whether adapters or other trained weights take part, so that the active adapter matters.
    """

    adapted: bool = False

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [m, V] of hidden states [m, D]."""

    @abstractmethod
    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M], given the hidden states [M, D] that predict them."""

    @abstractmethod
    def apply(self, function: FromLogits, hidden: Tensor, *along: Tensor) -> Tensor:
        """Return ``function(logits, *along)``, float32 [M, J], computed in chunks of positions.

        Args:
            function: of some positions at a time, independent of each other.
            hidden: [M, D].
            along: tensors [M, ...], cut into the same chunks, without gradient.
        """


class WholeLayer(OutputLayer):
    """For logits that the model has computed already, which are passed in place of hidden states."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return them in float32."""
        return at_least_float32(hidden)

    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M]."""
        return label_log_probs(hidden, labels)

    def apply(self, function: FromLogits, hidden: Tensor, *along: Tensor) -> Tensor:
        """Return ``function(logits, *along)``, float32 [M, J], at once."""
        return function(at_least_float32(hidden), *along)


class ChunkedLayer(OutputLayer):
    """Some positions at a time.

    With frozen output embeddings, each token's gradient is computed along with its log-prob, and the logits
    are discarded. Trained output embeddings are recomputed in the backward pass.

    Args:
        embeddings: the model's output embeddings.
        transform: of the logits.
    """

    def __init__(self, embeddings: nn.Module, transform: LogitTransform) -> None:
        self.embeddings, self.transform = embeddings, transform
        self._trained = any(weight.requires_grad for weight in embeddings.parameters())
        self.adapted = self._trained or type(embeddings) is not nn.Linear
        weight: Any = embeddings.weight
        self._rows = max(1, CHUNK_ELEMENTS // weight.shape[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [m, V] of hidden states [m, D]."""
        return at_least_float32(self.transform(self.embeddings(hidden)))

    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M], given the hidden states [M, D] that predict them."""

        def score(hidden: Tensor, labels: Tensor) -> Tensor:
            return label_log_probs(self.logits(hidden), labels)

        chunks = list(zip(torch.split(hidden, self._rows), torch.split(labels, self._rows), strict=True))
        if not torch.is_grad_enabled():
            return torch.cat([score(*chunk) for chunk in chunks])
        if self._trained:
            return torch.cat([checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([_LogProbs.apply(self.logits, *chunk) for chunk in chunks])  # type: ignore[no-untyped-call]

    def apply(self, function: FromLogits, hidden: Tensor, *along: Tensor) -> Tensor:
        """Return ``function(logits, *along)``, float32 [M, J], computed in chunks of positions."""

        def compute(hidden: Tensor, *along: Tensor) -> Tensor:
            return function(self.logits(hidden), *along)

        rows = max(1, self._rows // _COPIES)
        chunks = list(zip(*(torch.split(tensor, rows) for tensor in (hidden, *along)), strict=True))
        if not torch.is_grad_enabled():
            return torch.cat([compute(*chunk) for chunk in chunks])
        if self._trained:
            return torch.cat([checkpoint(compute, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([_Stored.apply(compute, *chunk) for chunk in chunks])  # type: ignore[no-untyped-call]

    def gathered(self) -> ChunkedLayer:
        """Return the layer with whole copies of sharded weights, for use outside the model's forward."""
        return _Gathered(self)


class _Gathered(ChunkedLayer):
    def __init__(self, layer: ChunkedLayer) -> None:
        super().__init__(layer.embeddings, layer.transform)
        self._weights = {
            name: weight.full_tensor() if isinstance(weight, DTensor) else weight
            for name, weight in layer.embeddings.state_dict().items()
        }

    def logits(self, hidden: Tensor) -> Tensor:
        weights = {name: weight.to(hidden.dtype) for name, weight in self._weights.items()}
        return at_least_float32(self.transform(functional_call(self.embeddings, weights, (hidden,))))


class FusedLayer(ChunkedLayer):
    """One GPU kernel that never writes the logits to memory: that of cut-cross-entropy.

    Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv 2411.09009. The paper's
    gradient filter is off, so gradients are exact. Functions of all logits are computed in chunks.
    """

    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return log π of each label, float32 [M], given the hidden states [M, D] that predict them."""
        from cut_cross_entropy import linear_cross_entropy

        embeddings: Any = self.embeddings
        if type(embeddings) is not nn.Linear or embeddings.bias is not None:
            raise TypeError("the kernel supports output embeddings with a single weight only")
        nll = linear_cross_entropy(
            hidden * self.transform.factor if self.transform.factor != 1 else hidden,
            embeddings.weight,
            labels,
            softcap=self.transform.cap,
            reduction="none",
            filter_eps=None,
        )
        return -nll.float()


class _LogProbs(torch.autograd.Function):
    """Computes each log-prob together with its gradient, which is all that the backward pass needs."""

    @staticmethod
    def forward(ctx: Any, to_logits: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            logits = to_logits(leaf)
        values, labels = logits.detach(), labels.unsqueeze(1)
        total = values.logsumexp(dim=1, keepdim=True)
        log_probs = (values.gather(1, labels) - total).squeeze(1)
        # d log π / d logits = 1[label] - π, in place of the logits, the largest tensor in memory.
        outer = values.sub_(total).exp_().neg_()
        outer.scatter_add_(1, labels, torch.ones_like(total))
        (gradient,) = torch.autograd.grad(logits, leaf, outer)
        ctx.save_for_backward(gradient)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, (outer[0].unsqueeze(-1) * gradient).to(gradient.dtype), None


class _Stored(torch.autograd.Function):
    """Computes J numbers per position together with their J gradients, and discards the logits."""

    @staticmethod
    def forward(ctx: Any, compute: FromLogits, hidden: Tensor, *along: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            values = compute(leaf, *along)
            # A position's numbers depend on its own hidden state alone, so one sum gives all its gradients.
            sums = values.sum(dim=0).unbind()
            gradients = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in sums]
        ctx.save_for_backward(torch.stack(gradients, dim=1))
        ctx.others = len(along)
        return values.detach()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        # In float32: log-probs and divergences of opposite sign may cancel.
        gradient = torch.einsum("mj,mjd->md", outer[0], gradients.to(outer[0].dtype))
        return None, gradient.to(gradients.dtype), *(None,) * ctx.others

"""Where generation ends, what fits into the context, and how a token is picked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.scoring import at_least_float32


def end_token_ids(policy: Any, end: int) -> list[int]:
    """Return the tokens that end a response: the template's and those of the policy's generation settings.

    Args:
        policy: the model.
        end: the id of the token that ends each response in training.
    """
    return end_tokens(policy.generation_config, end)


def end_tokens(settings: Any, end: int) -> list[int]:
    """Return the same from a ``transformers.GenerationConfig``."""
    own = settings.eos_token_id
    return sorted({end, *(own if isinstance(own, list) else [own])} - {None})


def room(policy: Any, new: int) -> int:
    """Return how many prompt tokens leave space for ``new`` more in the policy's context."""
    limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    return max(1, limit - new) if limit else 2**31


@contextmanager
def plain_settings(policy: Any) -> Iterator[None]:
    """Set the model's own generation settings aside: ``generate`` fills in what the caller leaves unset.

    A repetition penalty or suppressed tokens would change the distribution, and with it every log-prob.
    """
    from transformers import GenerationConfig

    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def uniforms(seeds: list[int], count: int) -> Tensor:
    """Return float64 [len(seeds), count], uniform numbers in [0, 1) that depend on their row's seed alone."""
    generator = torch.Generator()
    rows = [torch.rand(count, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def pick(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float, top_k: int) -> Tensor:
    """Return a token of each row, int64 [N], by inverting the distribution function at ``uniform``.

    Args:
        logits: [N, V].
        uniform: float64 [N] in [0, 1).
        temperature: divides the logits; with 0 the most probable token is returned.
        top_p: the smallest set of most probable tokens with at least this probability is kept, after
            ``temperature`` and ``top_k``; 1 keeps all.
        top_k: how many of the most probable tokens are kept; 0 keeps all.

    Examples:
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(3, 3)
        >>> pick(logits, torch.tensor([0.1, 0.75, 0.95]).double(), temperature=1.0, top_p=1.0, top_k=0)
        tensor([0, 1, 2])
        >>> pick(logits, torch.tensor([0.1, 0.75, 0.95]).double(), temperature=1.0, top_p=0.8, top_k=0)
        tensor([0, 0, 1])
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # float64: summing 100,000 probabilities in float32 would lose the tail.
    probs = (logits.double() / temperature).softmax(dim=-1)
    if top_k or top_p < 1:
        ordered, places = probs.sort(dim=-1, descending=True, stable=True)
        kept = torch.ones_like(ordered, dtype=torch.bool)
        if top_k:
            kept[:, top_k:] = False
            ordered = ordered * kept
        before = ordered.cumsum(dim=-1) - ordered
        kept &= before < top_p * ordered.sum(dim=-1, keepdim=True)
        probs = torch.zeros_like(probs).scatter(-1, places, ordered * kept)
    cumulative = probs.cumsum(dim=-1)
    aim = uniform.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    # To the right of equal values, so that a token without probability is never picked.
    picked = torch.searchsorted(cumulative, aim, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())  # the last token with probability
    return torch.minimum(picked, last).squeeze(-1)


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log softmax(logits) at ``tokens``, [N], in float32 or better."""
    logits = at_least_float32(logits)
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)

"""Sampling with transformers in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pl_prefopt.errors import DataError
from pl_prefopt.generation.base import Engine, Sample, Sampling
from pl_prefopt.generation.decoding import (
    end_token_ids,
    log_probs_of,
    pick,
    plain_settings,
    room,
    uniforms,
)
from pl_prefopt.scoring import can_share_prompt, evaluating


class TransformersEngine(Engine):
    """Samples with ``generate``, a batch of prompts at a time; adapters are used as they are.

    A prompt is computed once for all its samples, whose keys and values it is copied to, if all layers of the
    model are of full attention.

    Each sample has a stream of random numbers of its own, so it depends on its seed and not on other rows,
    but for rounding: a padded batch may give logits that differ in the last digits. ``generate_batch``
    (continuous batching) isn't used: it forms its batches by what is finished, and has no seed per request,
    so that a resumed run could not repeat it.

    Args:
        load: returns the model, with its adapter if it has one.
        end: the id of the token that ends each response in training.
        identity: a hash of the policy.
    """

    def __init__(self, load: Callable[[], Any], *, end: int, identity: str) -> None:
        self._load, self.end, self._identity = load, end, identity
        self.policy: Any = None

    def __enter__(self) -> Self:
        """Load the policy."""
        self.policy = self._load()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self.policy = None

    @property
    def identity(self) -> str:
        """The policy's hash."""
        return f"transformers {self._identity}"

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, one per seed."""
        self._check_lengths(prompts, sampling)
        ids, mask = _left_padded([list(prompt) for prompt in prompts], self.end)
        counts = torch.tensor([len(own) for own in seeds])
        flat = [seed for own in seeds for seed in own]
        made = iter(self._generate(ids, mask, counts, flat, sampling))
        return [[next(made) for _ in own] for own in seeds]

    def longest_prompt(self, sampling: Sampling) -> int:
        """See the base class."""
        return room(self.policy, sampling.max_new_tokens)

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest, limit = max(map(len, prompts)), self.longest_prompt(sampling)
        if longest > limit:
            raise DataError(
                f"A prompt of {longest} tokens and a response of {sampling.max_new_tokens} don't fit into "
                f"the policy's context: set max_prompt_length to at most {limit}, or lower max_new_tokens."
            )

    def _generate(
        self, ids: Tensor, mask: Tensor, counts: Tensor, seeds: list[int], sampling: Sampling
    ) -> list[Sample]:
        """Return ``counts`` [P] samples of each of the prompts [P, L], in one list."""
        from transformers import GenerationConfig

        policy, ends = self.policy, end_token_ids(self.policy, self.end)
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=self.end
        )
        ids, mask, counts = (given.to(policy.device) for given in (ids, mask, counts))
        draw = _Draw(uniforms(seeds, sampling.max_new_tokens), sampling)
        with torch.no_grad(), evaluating(policy), plain_settings(policy):
            shared = {}
            if ids.shape[1] > 1 and len(seeds) > len(ids) and can_share_prompt(policy):
                shared = {"past_key_values": _of_prompts(policy, ids, mask, counts)}
            output = policy.generate(
                input_ids=ids.repeat_interleave(counts, dim=0),
                attention_mask=mask.repeat_interleave(counts, dim=0),
                generation_config=settings,
                logits_processor=[draw],
                **shared,
            )
        new = output[:, ids.shape[1] :].tolist()
        log_probs = torch.stack(draw.log_probs, dim=1).tolist()
        return [_cut(*row, ends) for row in zip(new, log_probs, seeds, strict=True)]


def _of_prompts(policy: Any, ids: Tensor, mask: Tensor, counts: Tensor) -> Any:
    """Return keys and values of all tokens but the last of left-padded prompts, ``counts`` times each."""
    from transformers import DynamicCache

    cache = DynamicCache(config=policy.config.get_text_config())
    policy(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(torch.arange(len(ids), device=ids.device).repeat_interleave(counts))
    return cache


class _Draw:
    """A logits processor that leaves one token of each row, and records its log-prob."""

    def __init__(self, numbers: Tensor, sampling: Sampling) -> None:
        self._numbers, self._sampling = numbers, sampling
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step, settings = len(self.log_probs), self._sampling
        picked = pick(
            scores,
            self._numbers[:, step].to(scores.device),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )
        self.log_probs.append(log_probs_of(scores, picked))
        return torch.full_like(scores, -torch.inf).scatter(1, picked.unsqueeze(1), 0.0)


def _left_padded(rows: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = [[padding] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _cut(ids: list[int], log_probs: list[float], seed: int, ends: list[int]) -> Sample:
    """Cut a row after its first end token."""
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    if stop is None:
        return Sample(ids, log_probs[: len(ids)], "length", seed)
    return Sample(ids[: stop + 1], log_probs[: stop + 1], "stop", seed)

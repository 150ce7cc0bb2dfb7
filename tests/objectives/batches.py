"""Batches of made-up numbers for the tests of objectives and metrics."""

from __future__ import annotations

import dataclasses

import torch

from pl_prefopt.requests import REWARD, TokenRequest
from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers, ViewLogProbs

NAN = float("nan")


def make_batch(policy, reference=None, scores=None, *, present=None, length=None, graded=None, views=None):
    """A batch from nested lists; the policy's sums get a gradient."""
    policy = torch.as_tensor(policy, dtype=torch.float32).requires_grad_()
    present = torch.ones(policy.shape, dtype=torch.bool) if present is None else torch.as_tensor(present)
    length = torch.where(present, 4, 0) if length is None else torch.as_tensor(length)
    references = torch.zeros(0, *policy.shape)
    if reference is not None:
        references = torch.as_tensor(reference, dtype=torch.float32)[None]
    return ScoredBatch(
        policy=ResponseLogProbs(sum=policy, length=length),
        references=references,
        scores=torch.as_tensor(scores, dtype=torch.float32),
        present=present,
        graded=torch.ones(len(policy), dtype=torch.bool) if graded is None else torch.as_tensor(graded),
        views=views or {},
    )


def random_batch(seed=0, *, prompts=5, responses=4, views=True):
    """A ragged batch with ties and unknown scores; row 0 has two responses, row 1 has one."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(prompts, responses, generator=generator) < 0.8
    present[0], present[1] = torch.arange(responses) < 2, torch.arange(responses) < 1
    present[2:, 0] = True
    scores = torch.randint(0, 5, present.shape, generator=generator).float()
    scores[torch.rand(present.shape, generator=generator) < 0.1] = NAN
    scores[0, :2] = torch.tensor([1.0, 0.0])
    scores[~present] = NAN
    length = torch.where(present, torch.randint(1, 9, present.shape, generator=generator), 0)
    policy = torch.where(present, -length * torch.rand(present.shape, generator=generator) - 0.1, 0.0)
    reference = torch.where(present, -length * torch.rand(present.shape, generator=generator) - 0.1, 0.0)
    mismatched = {"mismatched": make_view(torch.full_like(policy, -3.0), torch.full_like(policy, -3.5))}
    return make_batch(
        policy, reference, scores, present=present, length=length, views=mismatched if views else None
    )


def make_view(policy, reference, present=None):
    """A second view from nested lists."""
    policy = torch.as_tensor(policy, dtype=torch.float32)
    present = torch.ones(policy.shape, dtype=torch.bool) if present is None else torch.as_tensor(present)
    return ViewLogProbs(
        policy=ResponseLogProbs(sum=policy, length=present.long()),
        references=torch.as_tensor(reference, dtype=torch.float32)[None],
        present=present,
    )


def select(batch, rows, columns=None):
    """The batch of these rows, and of these response columns, as a new leaf."""
    rows, columns = torch.as_tensor(rows), torch.arange(batch.scores.shape[1]) if columns is None else columns

    def pick(tensor):
        return tensor.detach()[..., rows, :][..., columns]

    return ScoredBatch(
        policy=ResponseLogProbs(
            sum=pick(batch.policy.sum).clone().requires_grad_(), length=pick(batch.policy.length)
        ),
        references=pick(batch.references),
        scores=pick(batch.scores),
        present=pick(batch.present),
        graded=batch.graded[rows],
        views=batch.views,
        columns={
            name: values[rows] if values.dim() == 1 else pick(values)
            for name, values in batch.columns.items()
        },
    )


def ensemble(seed=0, count=3, *, prompts=5, responses=4, view=None):
    """A ragged random batch with ``count`` references; with ``view`` also a view of that name on its rows."""
    batch = random_batch(seed, prompts=prompts, responses=responses, views=False)
    generator = torch.Generator().manual_seed(1000 + seed)

    def log_probs(*shape):
        drawn = -20 * torch.rand(*shape, *batch.present.shape, generator=generator) - 0.5
        return torch.where(batch.present, drawn, 0.0)

    views = {}
    if view:
        policy = ResponseLogProbs(sum=log_probs(), length=batch.policy.length)
        views[view] = ViewLogProbs(policy=policy, references=log_probs(count), present=batch.present)
    return dataclasses.replace(batch, references=log_probs(count), views=views)


def select_with_views(batch, rows, columns=None):
    """As ``select``, of views on the batch's own responses too."""
    chosen = select(batch, rows, columns)
    columns = torch.arange(batch.scores.shape[1]) if columns is None else columns

    def pick(tensor):
        return tensor[..., torch.as_tensor(rows), :][..., columns]

    views = {
        name: ViewLogProbs(
            policy=ResponseLogProbs(sum=pick(view.policy.sum), length=pick(view.policy.length)),
            references=pick(view.references),
            present=pick(view.present),
        )
        for name, view in batch.views.items()
    }
    return dataclasses.replace(chosen, views=views)


def tokens_of(batch: ScoredBatch, request: TokenRequest) -> TokenNumbers:
    """Numbers per token that depend on the response's sums alone, with gradient; log-probs add up to them."""
    length = batch.policy.length.unsqueeze(-1)
    place = torch.arange(9, device=length.device)
    counted = place < length

    def spread(sums):
        share = (2.0 * (length - place) / (length * (length + 1)).clamp(min=1)).to(sums.dtype)
        return torch.where(counted, share * sums.unsqueeze(-1), 0.0)

    policy, references = spread(batch.policy.sum), torch.stack([spread(one) for one in batch.references])
    kl = torch.where(counted, (policy - references) ** 2 / (1 + place), 0.0)
    return TokenNumbers(
        counted=counted,
        policy=policy,
        references=references if request.references else references[:0],
        kl=dict.fromkeys(request.kl, kl),
        collisions=0.5 * policy.detach() if request.collisions else None,
        steps=torch.where(counted, place // 2, -1) if request.steps else None,
        states=_states(policy.detach(), counted) if request.states else None,
    )


def _states(values, counted):
    # In the plane, at angles that depend on the tokens.
    return torch.stack([values.cos(), values.sin()], dim=-1).masked_fill(~counted.unsqueeze(-1), 0.0)


def rewards_of(sums, needs):
    """Outputs of a reward head that are linear in ``sums``, the first of them equal to it."""
    multiples = torch.arange(1, 1 + (needs.reward_outputs or 4), dtype=sums.dtype)
    return {REWARD: sums.unsqueeze(-1) * multiples + multiples - 1}


def heads_of(sums, needs):
    """Outputs of the heads that an objective asks for, affine in ``sums``."""
    return {
        name: sums.unsqueeze(-1) * torch.linspace(0.1, 0.3, outputs, dtype=sums.dtype)
        + torch.linspace(-1.0, 1.0, outputs, dtype=sums.dtype) ** 2
        for name, outputs in ((name, getattr(head, "outputs", 3)) for name, head in needs.heads.items())
    }


def garbage_where_absent(batch):
    """The batch with NaN in place of everything that is absent, as a new leaf."""
    absent = ~batch.present

    def spoil(values):
        return values.detach().masked_fill(absent, NAN)

    views = {
        name: dataclasses.replace(
            view,
            policy=ResponseLogProbs(sum=spoil(view.policy.sum), length=view.policy.length),
            references=spoil(view.references),
        )
        for name, view in batch.views.items()
    }
    policy = ResponseLogProbs(sum=spoil(batch.policy.sum).requires_grad_(), length=batch.policy.length)
    return dataclasses.replace(batch, policy=policy, references=spoil(batch.references), views=views)

"""Made-up arguments of the metrics' `update`. Imports little, since processes are spawned with it."""

from __future__ import annotations

import inspect

import torch

from pl_prefopt.pairing import rankable
from pl_prefopt.types import ResponseLogProbs
from tests.objectives.batches import random_batch


def inputs(reward, scores, *, policy=None, references=None, length=None, present=None, graded=None):
    """The keyword arguments of `update`, from nested lists."""
    reward, scores = torch.as_tensor(reward), torch.as_tensor(scores)
    shape = reward.shape
    return {
        "reward": reward,
        "policy": ResponseLogProbs(
            sum=torch.zeros(shape) if policy is None else torch.as_tensor(policy),
            length=torch.ones(shape, dtype=torch.int64) if length is None else torch.as_tensor(length),
        ),
        "references": torch.zeros(0, *shape) if references is None else torch.as_tensor(references),
        "scores": scores,
        "present": torch.ones(shape, dtype=torch.bool) if present is None else torch.as_tensor(present),
        "graded": torch.ones(shape[0], dtype=torch.bool) if graded is None else torch.as_tensor(graded),
        "loss": torch.full(shape[:1], 0.25),
        "counted": rankable(scores, torch.ones(shape, dtype=torch.bool)),
    }


def random_inputs(seed, prompts=5):
    batch = random_batch(seed, prompts=prompts, views=False)
    generator = torch.Generator().manual_seed(seed)
    return inputs(
        torch.randn(batch.scores.shape, generator=generator),
        batch.scores,
        policy=batch.policy.sum.detach(),
        references=batch.references,
        length=batch.policy.length,
        present=batch.present,
        graded=torch.rand(prompts, generator=generator) < 0.7,
    )


def join(*batches):
    """One batch of all rows."""

    def cat(name):
        return torch.cat([batch[name] for batch in batches])

    policy = ResponseLogProbs(
        sum=torch.cat([batch["policy"].sum for batch in batches]),
        length=torch.cat([batch["policy"].length for batch in batches]),
    )
    references = torch.cat([batch["references"] for batch in batches], dim=1)
    names = ("reward", "scores", "present", "graded", "loss", "counted")
    return {"policy": policy, "references": references, **{name: cat(name) for name in names}}


def read_by(metric, batch):
    """Those of a batch's arguments that a metric's `update` asks for."""
    return {name: batch[name] for name in inspect.signature(metric.update).parameters if name in batch}

"""Per-token answers of references: log-probs, and distributions over the vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt.references.base import PolicyHost, Reference, ReferenceAnswers
from pl_prefopt.scoring import HiddenStates, LogProbs, Readout, Vocabulary, at_least_float32
from pl_prefopt.types import PLAIN, PreferenceBatch


def token_answers(members: Sequence[Reference], host: PolicyHost, batch: PreferenceBatch) -> ReferenceAnswers:
    """Return live references' answers per token of the plain view, and per response of the other views.

    For KL divergences the references' hidden states [B, R, T, D] remain in memory until the loss is computed,
    and logits exist for one chunk of positions at a time.
    """
    tree, tokens = batch.trees[PLAIN], []
    vocabularies: list[Vocabulary] = []
    sums: dict[str, list[Tensor]] = {view: [] for view in batch.trees}
    readouts: list[Readout] = [LogProbs()]
    if host.reference_tokens is not None and host.reference_tokens.kl:
        readouts.append(HiddenStates())
    for member in members:
        running = functools.partial(member.running, host)
        with running() as (model, scorer):
            own = tree.to(next(model.parameters()).device)
            log_probs, *states = scorer.read(model, own, readouts)
            vocabularies += [scorer.vocabulary(model, one, running) for one in states]
        tokens.append(log_probs.to(host.device).masked_fill(~tree.counted_mask, 0.0))
        for view, found in sums.items():
            if view == PLAIN:
                found.append(tokens[-1].sum(dim=-1))
            else:
                found.append(at_least_float32(member.log_probs(host, batch, view)))
    return ReferenceAnswers(
        log_probs={view: torch.stack(found) for view, found in sums.items()},
        tokens=torch.stack(tokens),
        vocabularies=tuple(vocabularies),
    )

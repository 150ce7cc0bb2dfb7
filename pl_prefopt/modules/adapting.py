"""Fitting the head of a trained reward model to new users, or to a context, from a few labelled pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor

from pl_prefopt.data import EncodedRow, Renderer, collate
from pl_prefopt.errors import DataError
from pl_prefopt.files import atomic_write
from pl_prefopt.heads import StatePairs
from pl_prefopt.heads.users import pairs_in
from pl_prefopt.modules.checkpoint_files import ADAPTED, read_head, read_weights
from pl_prefopt.modules.reward import LEARNED, RewardModule, Truncated, check_truncated
from pl_prefopt.requests import REWARD
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.scoring import EndStates, evaluating

_ROWS_PER_PASS = 8
_OF_TRAINING = ("optimizer_states", "lr_schedulers")


def check_labelled(rows: Sequence[PreferenceRow], place: str) -> None:
    """Raise a ``DataError`` if no row has two responses with different scores."""
    if not any(pairs_in(row) for row in rows):
        raise DataError(
            f"expected pairs in {place}, rows with two responses of which one is better, got {len(rows)} "
            "rows without any: add `chosen` and `rejected`, or scores."
        )


def encode(rows: Sequence[PreferenceRow], renderer: Renderer, truncated: Truncated) -> list[EncodedRow]:
    """Return the rows as tokens.

    Args:
        rows: the rows.
        renderer: that of the run.
        truncated: what to do where responses are truncated, as in ``RewardModule``.

    Raises:
        DataError: if a response is truncated, and these are refused.
    """
    encoded = [renderer.encode(row) for row in rows]
    cuts = [cut for one in encoded for cut in one.response_cuts]
    check_truncated("given", sum(cut > 0 for cut in cuts), len(cuts), truncated)
    return encoded


@torch.no_grad()
def state_pairs(
    module: RewardModule, rows: Sequence[PreferenceRow], encoded: Sequence[EncodedRow], precision: Precision
) -> StatePairs:
    """Return the hidden states of all pairs of responses with different scores, as an evaluation has them.

    Args:
        module: a trained module, whose policy is converted to the precision.
        rows: rows with at least one pair.
        encoded: the same as tokens.
        precision: that of its run's trainer.
    """
    policy: Any = precision.convert_module(module.policy)
    device = next(policy.parameters()).device
    chosen: list[Tensor] = []
    rejected: list[Tensor] = []
    prompts: list[Tensor] = []
    of_pair: list[PreferenceRow] = []
    with evaluating(policy), precision.forward_context():
        for start in range(0, len(rows), _ROWS_PER_PASS):
            some = rows[start : start + _ROWS_PER_PASS]
            tree = collate(encoded[start : start + _ROWS_PER_PASS]).to(device)
            last, prompt = module.scorer.read(policy, tree, [EndStates("response"), EndStates("prompt")])
            for number, row in enumerate(some):
                for winner, loser in _pairs(row):
                    chosen.append(last[number, winner])
                    rejected.append(last[number, loser])
                    prompts.append(prompt[number])
                    of_pair.append(row)
    head = next(module.reward_head.parameters())
    first, second, third = (torch.stack(each).to(head) for each in (chosen, rejected, prompts))
    return StatePairs(first, second, third, of_pair)


def save_adapted(checkpoint: Path, module: RewardModule, out: Path) -> None:
    """Write a checkpoint with the module's head in place of its own, without what resuming would need.

    Args:
        checkpoint: the one that the module was loaded from.
        module: the module, whose head has been adapted.
        out: the file to write.
    """
    head = module.reward_head
    rest = {name: value for name, value in read_head(checkpoint).rest.items() if name not in _OF_TRAINING}
    own = {f"heads.{REWARD}.{name}": weight.cpu() for name, weight in head.state_dict().items()}
    weights = {**read_weights(checkpoint), **own}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as draft:
        torch.save({**rest, LEARNED: head.learned, ADAPTED: True, "state_dict": weights}, draft)


def _pairs(row: PreferenceRow) -> Iterator[tuple[int, int]]:
    """Yield winner and loser of each pair of responses with different scores."""
    scores = row.scores or ()
    places = range(len(scores))
    return ((one, two) for one in places for two in places if scores[one] > scores[two])

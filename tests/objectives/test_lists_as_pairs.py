"""A list's loss and gradient are the mean (or the sum) over its pairs, each trained as a pair of its own."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from pl_prefopt.objectives import Compose
from pl_prefopt.pairing import AllPairs, BestAgainstEach, BestAgainstWorst
from pl_prefopt.types import ResponseLogProbs, ScoredBatch, ViewLogProbs
from tests.objectives.batches import ensemble, rewards_of, select_with_views, tokens_of
from tests.objectives.test_method_configs import NAMES, build, load

NOT_OVER_PAIRS = {
    "aot",
    "aot_unpaired",
    "apo_zero_unpaired",
    "bco",
    "bradley_terry_contrastive",
    "brain",
    "gpo",
    "helpsteer2_attributes",
    "kto",
    "lipo_lambda",
    "iterative_rpo",
    "lipo_softmax",
    "listnet",
    "mpo",
    "mppo_list_mle",
    "mppo_pair_mcm",
    "mppo_pair_mnm",
    "mppo_point_ce",
    "mppo_point_mse",
    "osp",
    "plackett_luce",
    "plackett_luce_dpo",
    "pro",
    "raft",
    "rationale_dpo",
    "rationale_orpo",
    "rc_bt",
    "rc_dpo",
    "reward_classification",
    "reward_plackett_luce",
    "reward_regression",
    "rpo",
    "rrhf",
    "sft",
    "slic_hf",
    "spo_degree",
    "sppo",
    "tree_tpo",
    "xpo",
}
"""Losses or terms of single responses, of all pairs at once, of rows with one pair, or weighted by lists."""
SUMS = {"mppo_pair_mcs", "mppo_pair_mns"}
"""Sums over pairs, as printed in the paper; Pair-MNS averages over winners that tie."""
OWN_PAIRS = {
    "mppo_pair_mcs": AllPairs(),
    "mppo_pair_mns": BestAgainstEach(),
    "mppo_pair_single": BestAgainstEach(),
}
MEANS_OVER_PROMPTS = {"gpm", "gpm_regression", "maxmin_em", "micro"}
"""A response's reward is relative to all responses to its prompt, itself included."""
OVER_PAIRS = sorted(set(NAMES) - NOT_OVER_PAIRS)
PAIRINGS = (AllPairs(), BestAgainstWorst(), BestAgainstEach())


def in_double(batch):
    """The batch in float64, as a new leaf."""

    def logps(values):
        return ResponseLogProbs(sum=values.sum.detach().double(), length=values.length)

    policy = ResponseLogProbs(
        sum=batch.policy.sum.detach().double().requires_grad_(), length=batch.policy.length
    )
    views = {
        name: ViewLogProbs(
            policy=logps(view.policy), references=view.references.double(), present=view.present
        )
        for name, view in batch.views.items()
    }
    return dataclasses.replace(
        batch,
        policy=policy,
        references=batch.references.double(),
        scores=batch.scores.double(),
        views=views,
    )


def a_list(name, seed) -> ScoredBatch:
    """Prompts with one to five responses, some of them tied, of unknown score or absent."""
    members = len(load(name)["references"]["members"])
    batch = in_double(ensemble(seed, members, prompts=8, responses=5, view="quality"))
    of_rows = 0.1 * batch.policy.sum.detach().sum(dim=1)
    columns = {"strength": 0.3 * batch.policy.sum.detach(), "margin": of_rows, "magnitude": of_rows.abs()}
    if name == "reward_strengths":
        columns["strength"] = of_rows
    return dataclasses.replace(batch, columns=columns)


def with_pairing(objective, pairing):
    """A copy of the objective that compares these pairs."""
    objective = copy.copy(objective).eval()
    if isinstance(objective, Compose):
        objective.structure = dataclasses.replace(objective.structure, pairing=pairing)
    elif hasattr(objective, "pairing"):
        objective.pairing = pairing
    return objective


def outcome_of(objective, batch):
    """What the objective gives, with numbers per token or a head's outputs if it asks for them."""
    if objective.needs.reward_outputs is not None:
        batch = dataclasses.replace(batch, outputs=rewards_of(batch.policy.sum, objective.needs))
    if objective.needs.tokens is not None:
        batch = dataclasses.replace(batch, tokens=tokens_of(batch, objective.needs.tokens))
    return objective(batch)


def one_by_one(objective, whole, row, pairs):
    """The losses of pairs of a prompt's responses, each a prompt of its own, added up; and their gradient."""
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(whole.policy.sum[row]).detach()
    for pair in pairs:
        alone = select_with_views(whole, [row], torch.tensor(pair))
        outcome = outcome_of(objective, alone)
        outcome.loss.sum().backward()
        loss += outcome.loss[0].detach()
        gradient[pair] += alone.policy.sum.grad[0]
    return loss, gradient


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OVER_PAIRS)
def test_a_list_is_the_mean_over_its_pairs(name, seed):
    own, long_lists = build(load(name)), 0
    for pairing in (OWN_PAIRS[name],) if name in OWN_PAIRS else PAIRINGS:
        objective, whole = with_pairing(own, pairing), a_list(name, seed)
        outcome = outcome_of(objective, whole)
        outcome.loss.sum().backward()
        wins = pairing(whole.scores, whole.present)
        for row in range(len(wins)):
            pairs = wins[row].nonzero().tolist()
            loss, gradient = one_by_one(objective, whole, row, pairs)
            winners = len({winner for winner, _ in pairs}) if name == "mppo_pair_mns" else 1
            count = max(winners if name in SUMS else len(pairs), 1)
            torch.testing.assert_close(outcome.loss[row], loss / count, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(whole.policy.sum.grad[row], gradient / count, rtol=1e-12, atol=1e-12)
            assert outcome.counted[row] == bool(pairs)
            long_lists += len(pairs) > 2
    assert long_lists


@pytest.mark.parametrize("name", [name for name in OVER_PAIRS if name not in MEANS_OVER_PROMPTS])
def test_a_response_of_a_list_has_the_mean_reward_of_its_pairs(name):
    objective, whole = build(load(name)), a_list(name, 0)
    outcome = outcome_of(objective, whole)
    for row in range(len(whole.scores)):
        here = whole.present[row].nonzero()[:, 0].tolist()
        for response in here:
            others = [other for other in here if other != response]
            if not others:
                continue
            pairs = [select_with_views(whole, [row], torch.tensor([response, other])) for other in others]
            rewards = torch.stack([outcome_of(objective, pair).reward[0, 0] for pair in pairs])
            torch.testing.assert_close(outcome.reward[row, response], rewards.mean(), rtol=1e-12, atol=1e-12)

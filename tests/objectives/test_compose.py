"""Compositions that no named class has, against loops over pairs in plain Python."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives import DPO, IPO, KTO, PairMCM, PairMCS, PairMNM, PairMNS, SimPO
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.links import HingeLink, Logistic
from pl_prefopt.objectives.offsets import LengthGap, LogScoreGap, ScoreGap
from pl_prefopt.objectives.pair_weights import ConstantWeight
from pl_prefopt.objectives.scores import LogRatio, MeanLikelihood, MeanLogProb, SumLogProb
from pl_prefopt.objectives.structures import MeanOfPairs, MergedPairs, PlackettLuce, SumOfPairs
from pl_prefopt.objectives.sums import Sum
from pl_prefopt.objectives.terms import NegativeLogLikelihood
from pl_prefopt.pairing import BestAgainstEach
from tests.frozen.batches import frozen_batch
from tests.objectives.batches import garbage_where_absent


def lists():
    """Eight prompts of one to eight responses, the last row without grades."""
    batch = frozen_batch(references=1, views={})
    batch.graded[-1] = False
    return batch


def responses(batch, row):
    """A prompt's known responses as (score, policy sum, reference sum, length)."""
    columns = zip(
        batch.scores[row].tolist(),
        batch.policy.sum[row].tolist(),
        batch.references[0, row].tolist(),
        batch.policy.length[row].tolist(),
        batch.present[row].tolist(),
        strict=True,
    )
    return [column[:4] for column in columns if column[4] and not math.isnan(column[0])]


def pairs(batch, row):
    known = responses(batch, row)
    return [(winner, loser) for winner in known for loser in known if winner[0] > loser[0]]


def softplus(value):
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def gradient(objective, batch):
    loss = objective(batch).loss
    (slope,) = torch.autograd.grad(loss.sum(), batch.policy.sum)
    return loss.detach(), slope


def test_dpo_with_offsets_smoothing_and_a_term_equals_a_loop_over_pairs():
    batch = lists()
    objective = Compose(
        score=LogRatio(beta=0.2),
        link=Logistic(label_smoothing=0.1),
        offsets=[LogScoreGap(alpha=0.5), LengthGap(alpha=0.03)],
        weights=[ConstantWeight(value=0.7)],
        terms=[NegativeLogLikelihood(weight=0.4)],
    )

    def loss(row, winner, loser):
        (s_w, p_w, r_w, n_w), (s_l, p_l, r_l, n_l) = winner, loser
        gap = 0.5 * math.log(s_w - s_l) if batch.graded[row] else 0.0
        z = 0.2 * ((p_w - r_w) - (p_l - r_l)) - gap - 0.03 * (n_w - n_l)
        return 0.7 * (0.9 * softplus(-z) + 0.1 * softplus(z)) - 0.4 * p_w / n_w

    expected = [mean([loss(row, *pair) for pair in pairs(batch, row)]) for row in range(len(batch.scores))]
    outcome = objective(batch)
    torch.testing.assert_close(
        outcome.loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    nll = [mean([-0.4 * w[1] / w[3] for w, _ in pairs(batch, row)]) for row in range(len(batch.scores))]
    counted = [bool(pairs(batch, row)) for row in range(len(batch.scores))]
    assert outcome.counted.tolist() == counted
    assert float(outcome.stats["nll"]) == pytest.approx(sum(nll) / sum(counted), rel=1e-12)


def test_plackett_luce_is_the_likelihood_of_the_ranking():
    batch = lists()
    objective = Compose(score=MeanLogProb(beta=2.0), structure=PlackettLuce())

    def loss(row):
        known = [(score, 2.0 * policy / length) for score, policy, _, length in responses(batch, row)]
        below = {place: [r for s, r in known if s < score] for place, (score, _) in enumerate(known)}
        terms = [math.log(sum(map(math.exp, [r, *below[i]]))) - r for i, (_, r) in enumerate(known)]
        return sum(term for i, term in enumerate(terms) if below[i])

    expected = torch.tensor([loss(row) for row in range(len(batch.scores))], dtype=torch.float64)
    values, slopes = gradient(objective, batch)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    assert slopes.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda sums: objective(replaced(batch, sums)).loss, batch.policy.sum.detach().clone().requires_grad_()
    )


def test_plackett_luce_of_a_pair_is_dpo_and_of_the_best_the_softmax():
    batch = lists()
    two = Compose(score=LogRatio(beta=0.1), structure=PlackettLuce())(batch).loss[1]
    torch.testing.assert_close(two, DPO(beta=0.1)(batch).loss[1])
    best = Compose(score=SumLogProb(beta=0.1), structure=PlackettLuce(BestAgainstEach()))(batch).loss[5]
    rewards = 0.1 * batch.policy.sum[5, :6]
    torch.testing.assert_close(best, -rewards.log_softmax(dim=0)[5])


@pytest.mark.parametrize(
    ("structure", "named"),
    [
        (SumOfPairs(), PairMCS()),
        (MergedPairs(), PairMCM()),
        (SumOfPairs(BestAgainstEach()), PairMNS()),
        (MergedPairs(BestAgainstEach()), PairMNM()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mppo_is_a_composition_where_the_best_does_not_tie(structure, named):
    batch = lists()
    untied = torch.tensor([row for row in range(len(batch.scores)) if row != 6])
    composed, known = (
        gradient(Compose(score=MeanLikelihood(), structure=structure), batch),
        gradient(named, batch),
    )
    for ours, theirs in zip(composed, known, strict=True):
        torch.testing.assert_close(ours[untied], theirs[untied], rtol=1e-12, atol=1e-12)


def test_what_stands_at_absent_responses_reaches_no_gradient():
    objective = Compose(
        score=LogRatio(), offsets=[ScoreGap(alpha=0.1), LengthGap(alpha=0.1)], terms=[NegativeLogLikelihood()]
    )
    clean, spoiled = gradient(objective, lists()), gradient(objective, garbage_where_absent(lists()))
    assert all(torch.equal(*sides) for sides in zip(clean, spoiled, strict=True))


def test_a_sum_weighs_its_parts_and_logs_them_by_name():
    batch = lists()
    parts = {"dpo": DPO(), "kl": Compose(score=SumLogProb(), link=HingeLink())}
    outcome = Sum(parts=parts, weights={"kl": 0.25})(batch)
    dpo, kl = (part(batch) for part in parts.values())
    torch.testing.assert_close(outcome.loss, dpo.loss + 0.25 * kl.loss)
    assert torch.equal(outcome.reward, dpo.reward)
    assert float(outcome.stats["kl_loss"]) == pytest.approx(kl.loss[kl.counted].mean().item())


def test_needs_of_parts_are_joined():
    joined = Sum(parts={"simpo": SimPO(), "kto": KTO()}).needs
    assert (joined.min_references, joined.max_references, joined.min_responses) == (1, 1, 2)
    assert set(joined.views) == {"mismatched"}
    assert Compose(score=MeanLogProb(), terms=[NegativeLogLikelihood()]).needs.max_references is None


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: composed(structure=MergedPairs(), weights=[ConstantWeight(2.0)]), "MergedPairs merges"),
        (lambda: composed(terms=[NegativeLogLikelihood()] * 2), "different names, got nll, nll"),
        (lambda: Sum(parts={}), "at least one objective"),
        (lambda: Sum(parts={"ipo": IPO()}, weights={"dpo": 1.0}), "of ipo, got one of dpo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_do_not_go_together_are_refused(build, said):
    with pytest.raises(ConfigError, match=said):
        build()


def test_the_mean_over_pairs_is_the_default():
    assert Compose(score=LogRatio()).structure == MeanOfPairs()


def composed(**parts):
    return Compose(score=LogRatio(), **parts)


def replaced(batch, sums):
    return dataclasses.replace(batch, policy=dataclasses.replace(batch.policy, sum=sums))

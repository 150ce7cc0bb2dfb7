"""Objectives on lists: closed forms with gradients, and what each becomes in a special case."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.modules.compatibility import check_rows, check_scores
from pl_prefopt.objectives import (
    DPO,
    GPO,
    PRO,
    RAFT,
    SFT,
    SPPO,
    BRAIn,
    ColumnProposal,
    Compose,
    GivenWinRates,
    LambdaLoss,
    ListNet,
    LogRatio,
    PlackettLuce,
    PlackettLuceDPO,
    PlackettLuceRanking,
    ReferenceProposal,
    SimPO,
    SoftmaxCrossEntropy,
    SPPOHard,
)
from pl_prefopt.pairing import BEST_AGAINST_EACH
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.types import PreferenceBatch, ResponseLogProbs, ScoredBatch
from tests.objectives.batches import NAN, random_batch

POLICY = (-5.0, -9.0, -7.5, -6.0)
REFERENCE = (-6.0, -8.0, -8.0, -6.5)
RATIO = tuple(p - r for p, r in zip(POLICY, REFERENCE, strict=True))


def batch_of(policy, scores, *references, lengths=None, graded=True, columns=None):
    """One prompt in float64; the policy's sums get a gradient."""
    sums = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    return ScoredBatch(
        policy=ResponseLogProbs(sum=sums, length=torch.tensor([lengths or [2] * len(policy)])),
        references=torch.tensor(references, dtype=torch.float64).view(-1, *sums.shape),
        scores=torch.tensor([scores]),
        present=torch.ones(sums.shape, dtype=torch.bool),
        graded=torch.tensor([graded]),
        columns=columns or {},
    )


def loss_and_slope(objective, batch):
    outcome = objective(batch)
    return outcome.loss.sum(), torch.autograd.grad(outcome.loss.sum(), batch.policy.sum)[0]


def check_same(one, two, batch, factor=1.0):
    (loss, slope), (other, at) = loss_and_slope(one, batch), loss_and_slope(two, batch)
    torch.testing.assert_close(loss, factor * other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, factor * at, rtol=1e-9, atol=1e-9)


def in_double(batch, *, graded=True):
    policy = dataclasses.replace(batch.policy, sum=batch.policy.sum.detach().double().requires_grad_())
    graded = torch.full_like(batch.graded, graded)
    return dataclasses.replace(batch, policy=policy, references=batch.references.double(), graded=graded)


# -- PRO


def test_pro_is_its_equation():
    """Four responses in no order, 2 tokens each, with gaps that are not 1."""
    scores, mean = (4.0, 1.0, 2.5, 3.0), [value / 2 for value in POLICY]
    expected = 0.0
    for k, own in enumerate(scores):
        below = [i for i, other in enumerate(scores) if other < own]
        if below:
            top = math.exp(mean[k] * max(own - scores[i] for i in below))
            rest = sum(math.exp(mean[i] * (own - scores[i])) for i in below)
            expected -= math.log(top / (top + rest))
    expected += 0.05 * 9 * 5.0
    assert PRO()(batch_of(POLICY, scores)).loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_gap_multiplies_pros_margin_of_two():
    for gap in (1.0, 3.0):
        batch = batch_of(POLICY[:2], (1 + gap, 1.0))
        check_same(PRO(sft_weight=0.0), SimPO(beta=gap, gamma=0.0), batch)


def test_without_temperatures_pro_is_plackett_luce():
    labels = in_double(random_batch(3, prompts=9), graded=False)
    check_same(PRO(sft_weight=0.0), PlackettLuceRanking(beta=1.0), labels)


def test_pro_gives_a_tied_negative_no_gradient():
    """It neither wins nor loses against the one that it ties with, but both lose against the best."""
    _, slope = loss_and_slope(PRO(sft_weight=0.0), batch_of(POLICY[:3], (1.0, 1.0, 1.0)))
    assert not slope.any()
    (_, tied), (_, alone) = (
        loss_and_slope(PRO(sft_weight=0.0), batch_of(POLICY[:count], scores))
        for count, scores in ((3, (2.0, 1.0, 1.0)), (2, (2.0, 1.0)))
    )
    assert (tied[0, 1:] > 0).all()
    assert alone[0, 1] > 0
    best = (2.0, 2.0, 1.0)
    loss = (
        PRO(sft_weight=1.0)(batch_of(POLICY[:3], best)).loss
        - PRO(sft_weight=0.0)(batch_of(POLICY[:3], best)).loss
    )
    assert loss.item() == pytest.approx(4 * 7.0), "(n − 1)² times the mean over the two best"


# -- Plackett-Luce


def test_plackett_luce_probabilities_sum_to_1_over_all_orders():
    for objective in (PlackettLuceDPO(beta=0.7), PlackettLuceRanking()):
        total = sum(
            math.exp(-objective(batch_of(POLICY, order, REFERENCE)).loss.item())
            for order in itertools.permutations((1.0, 2.0, 3.0, 4.0))
        )
        assert total == pytest.approx(1.0, rel=1e-12)


def test_plackett_luce_of_two_is_dpo_and_simpo():
    pair = batch_of(POLICY[:2], (0.0, 1.0), REFERENCE[:2], graded=False)
    check_same(PlackettLuceDPO(beta=0.3), DPO(beta=0.3), pair)
    check_same(PlackettLuceRanking(beta=2.0), SimPO(beta=2.0, gamma=0.0), pair)


# -- distributions over a list


def test_the_gradient_of_a_cross_entropy_is_the_softmax_minus_the_target():
    scores = (0.9, 0.1, 0.5, 0.5)
    _, slope = loss_and_slope(SoftmaxCrossEntropy(beta=0.2), batch_of(POLICY, scores, REFERENCE))
    shares = (0.2 * torch.tensor([RATIO], dtype=torch.float64)).softmax(-1)
    target = torch.tensor([scores], dtype=torch.float32).double() / 2.0
    torch.testing.assert_close(slope, 0.2 * (shares - target))


def test_a_target_of_one_response_is_softmax_dpo():
    best = Compose(score=LogRatio(0.2), structure=PlackettLuce(BEST_AGAINST_EACH))
    one_hot = batch_of(POLICY, (0.0, 0.0, 1.0, 0.0), REFERENCE, graded=False)
    check_same(SoftmaxCrossEntropy(beta=0.2), best, one_hot)
    check_same(
        ListNet(beta=0.2, temperature=1e-3), best, dataclasses.replace(one_hot, graded=torch.tensor([True]))
    )
    pair = batch_of(POLICY[:2], (1.0, 0.0), REFERENCE[:2], graded=False)
    check_same(SoftmaxCrossEntropy(beta=0.2), DPO(beta=0.2), pair)


def test_listnet_is_at_its_minimum_where_rewards_are_the_scores():
    scores = (3.0, 1.0, 0.5)
    policy = tuple(-8.0 + score / (0.5 * 2.0) for score in scores)
    loss, slope = loss_and_slope(ListNet(beta=0.5, temperature=2.0), batch_of(policy, scores, (-8.0,) * 3))
    assert slope.abs().max() < 1e-12
    target = (torch.tensor(scores, dtype=torch.float64) / 2).softmax(-1)
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item()), "the target's entropy"


def test_shares_of_nothing_give_no_loss():
    outcome = SoftmaxCrossEntropy()(batch_of(POLICY, (0.0,) * 4, REFERENCE))
    assert (outcome.loss.item(), outcome.counted.item()) == (0.0, False)


# -- LambdaLoss


def test_lambda_is_the_change_of_dcg_by_a_swap():
    scores, rewards = [0.2, 1.0, 3.0, 2.0, 0.0], [0.1, -0.4, 0.3, 0.2, 0.9]

    def dcg(values):
        places = sorted(range(5), key=lambda i: -values[i])
        return sum((2 ** scores[i] - 1) / math.log(1 + place) for place, i in enumerate(places, start=1))

    present = torch.ones(1, 5, dtype=torch.bool)
    found = functional.swap_gain(
        *(torch.tensor([v], dtype=torch.float64) for v in (rewards, scores)), present
    )
    for i, j in itertools.combinations(range(5), 2):
        swapped = list(rewards)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert found[0, i, j].item() == pytest.approx(abs(dcg(rewards) - dcg(swapped)))
        assert found[0, i, j] == found[0, j, i]


def test_tied_rewards_take_the_mean_over_their_orders():
    """Two groups of ties, against every order of breaking them; an absent response takes no rank."""
    rewards = torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.5, 9.0]], dtype=torch.float64)
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0, 2.5, 9.0]], dtype=torch.float64)
    present = torch.tensor([[True] * 5 + [False]])
    expected, count = torch.zeros(5, 5, dtype=torch.float64), 0
    for high in itertools.permutations((0, 2, 4)):
        for low in itertools.permutations((1, 3)):
            rank = {response: place for place, response in enumerate((*high, *low), start=1)}
            discount = torch.tensor([1 / math.log(1 + rank[i]) for i in range(5)], dtype=torch.float64)
            gains = scores[0, :5].exp2()
            expected += (gains[:, None] - gains).abs() * (discount[:, None] - discount).abs()
            count += 1
    found = functional.swap_gain(rewards, scores, present)[0]
    torch.testing.assert_close(found[:5, :5], expected / count)
    assert not found[5].any()
    assert not found[:, 5].any()


@pytest.mark.parametrize(
    "policy", [(-5.0, -9.0), (-9.0, -5.0), (-6.0, -8.0)], ids=["right", "wrong", "untrained"]
)
def test_lambda_loss_of_a_pair_is_dpo_times_a_constant(policy):
    batch = batch_of(policy, (1.0, 0.0), REFERENCE[:2], graded=False)
    check_same(LambdaLoss(beta=0.3), DPO(beta=0.3), batch, factor=1 / math.log(2) - 1 / math.log(3))


# -- SPPO and GPO


def test_sppo_draws_best_and_worst_to_their_win_rates():
    scores, beta = (1.0, -0.5, 2.0, 0.25), 0.05
    win = [sum(1 / (1 + math.exp(other - own)) for other in scores) / 4 for own in scores]
    expected = sum((RATIO[i] - (win[i] - 0.5) / beta) ** 2 for i in (2, 1)) / 2
    batch = batch_of(POLICY, scores, REFERENCE)
    loss, slope = loss_and_slope(SPPO(beta=beta), batch)
    assert loss.item() == pytest.approx(expected)
    assert slope[0, 0] == slope[0, 3] == 0, "those between are only opponents"
    at_optimum = [ref + (rate - 0.5) / beta for ref, rate in zip(REFERENCE, win, strict=True)]
    assert SPPO(beta=beta)(batch_of(at_optimum, scores, REFERENCE)).loss.item() == pytest.approx(0, abs=1e-12)


def test_certain_win_rates_are_half_the_hard_loss():
    """TRL's sppo_hard: (a_w − 1/(2β))² + (a_l + 1/(2β))² = ½(h − 1/β)² + ½(a_w + a_l)²."""
    batch = batch_of(POLICY[:2], (1.0, 0.0), REFERENCE[:2], graded=False)
    won, lost = RATIO[:2]
    hard = (won - 5) ** 2 + (lost + 5) ** 2
    assert hard == pytest.approx(0.5 * (won - lost - 10) ** 2 + 0.5 * (won + lost) ** 2)
    assert SPPO(beta=0.1, win_rates=GivenWinRates())(batch).loss.item() == pytest.approx(hard / 2)
    check_same(SPPO(beta=0.1, win_rates=GivenWinRates()), SPPOHard(beta=0.1), batch, factor=0.5)


def test_sppo_is_an_ipo_loss_of_the_margin_and_one_of_the_level():
    scores, beta = (1.0, 0.25), 0.05
    win = [sum(1 / (1 + math.exp(other - own)) for other in scores) / 2 for own in scores]
    margin, level = RATIO[0] - RATIO[1], RATIO[0] + RATIO[1]
    twice = 0.5 * (margin - (win[0] - win[1]) / beta) ** 2 + 0.5 * (level - (win[0] + win[1] - 1) / beta) ** 2
    loss = SPPO(beta=beta)(batch_of(POLICY[:2], scores, REFERENCE[:2])).loss
    assert loss.item() == pytest.approx(twice / 2)


def test_alike_responses_are_drawn_to_the_reference():
    nearly = (0.5 + 1e-7, 0.5)
    loss = SPPO(win_rates=GivenWinRates())(batch_of(POLICY[:2], nearly, REFERENCE[:2])).loss
    assert loss.item() == pytest.approx((RATIO[0] ** 2 + RATIO[1] ** 2) / 2, rel=1e-3)


def test_gpo_is_sppo_on_preference_scores():
    """Scores that sum to 0, as the means of an antisymmetric model do, are targets as they are."""
    scores = (0.3, -0.45, 0.25, -0.1)
    batch = batch_of(POLICY, scores, REFERENCE)
    rates = dataclasses.replace(batch, scores=batch.scores + 0.5)
    sppo, gpo = SPPO(beta=0.1, win_rates=GivenWinRates())(rates).loss, GPO(beta=0.1)(batch).loss
    torch.testing.assert_close(sppo, gpo, rtol=1e-5, atol=1e-6)
    moved = GPO(beta=0.1)(dataclasses.replace(batch, scores=batch.scores + 2.0)).loss
    torch.testing.assert_close(moved, gpo, rtol=1e-5, atol=1e-6)
    expected = ((RATIO[0] - 3.0) ** 2 + (RATIO[1] + 4.5) ** 2) / 2
    assert gpo.item() == pytest.approx(expected, rel=1e-6), "not doubled"


# -- BRAIn


def test_brains_gradient_is_the_difference_of_the_two_distributions():
    scores, proposal = (1.0, -0.5, 2.0, 0.25), (-7.0, -7.5, -6.0, -9.0)
    objective = BRAIn(temperature=0.5, proposal=ReferenceProposal(1))
    _, slope = loss_and_slope(objective, batch_of(POLICY, scores, REFERENCE, proposal))
    q, policy, prior = (torch.tensor(v, dtype=torch.float64) for v in (proposal, POLICY, REFERENCE))
    posterior = (prior - q + torch.tensor(scores) / 0.5).softmax(-1)
    torch.testing.assert_close(slope[0], (policy - q).softmax(-1) - posterior)
    column = torch.tensor([proposal], dtype=torch.float64)
    by_column = BRAIn(temperature=0.5, proposal=ColumnProposal("sampled"))
    given = batch_of(POLICY, scores, REFERENCE, columns={"sampled": column})
    torch.testing.assert_close(loss_and_slope(by_column, given)[1], slope)


def test_a_policy_that_is_the_posterior_gives_brain_no_gradient():
    scores = (1.0, -0.5, 2.0, 0.25)
    policy = [ref + score / 0.5 - 5.0 for ref, score in zip(REFERENCE, scores, strict=True)]
    _, slope = loss_and_slope(
        BRAIn(temperature=0.5, proposal=ReferenceProposal(0)), batch_of(policy, scores, REFERENCE)
    )
    assert slope.abs().max() < 1e-12


def test_brain_on_samples_of_the_reference_is_listnet_and_with_hard_targets_dpo():
    lists = in_double(random_batch(5, prompts=9))
    brain = BRAIn(temperature=1.7, proposal=ReferenceProposal(0))
    check_same(brain, ListNet(beta=1.0, temperature=1.7), lists)
    pair = batch_of(POLICY[:2], (1.0, 0.0), REFERENCE[:2])
    check_same(BRAIn(temperature=1e-3, proposal=ReferenceProposal(0)), DPO(beta=1.0), pair)


# -- RAFT


def test_raft_is_sft_on_the_best():
    check_same(RAFT(), SFT(responses="best"), in_double(random_batch(4, prompts=9)))


def test_raft_is_the_likelihood_of_the_best():
    batch = batch_of(POLICY, (1.0, 3.0, 3.0, 2.0), lengths=[1, 2, 3, 4])
    loss, slope = loss_and_slope(RAFT(), batch)
    assert loss.item() == pytest.approx((9.0 / 2 + 7.5 / 3) / 2)
    torch.testing.assert_close(slope, torch.tensor([[0, -1 / 4, -1 / 6, 0]], dtype=torch.float64))


# -- extremes and refusals

EVERY = (
    PRO(),
    PlackettLuceDPO(),
    PlackettLuceRanking(),
    LambdaLoss(),
    SoftmaxCrossEntropy(),
    ListNet(),
    SPPO(),
    GPO(),
    BRAIn(temperature=1.0, proposal=ReferenceProposal(0)),
    RAFT(),
)


@pytest.mark.parametrize("objective", EVERY, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("far", [(-1e4, -1.0, -5e3), (-1.0, -1e4, -9e3)])
def test_extreme_log_probs_and_gaps_are_finite_in_float32(objective, far):
    gap = 30.0 if isinstance(objective, LambdaLoss) else 1e3
    batch = batch_of(far, (gap, 0.0, 1.0), (-1e4, -1e4, -1.0), lengths=[1, 1, 1])
    sums = batch.policy.sum.detach().float().requires_grad_()
    single = dataclasses.replace(
        batch, policy=dataclasses.replace(batch.policy, sum=sums), references=batch.references.float()
    )
    loss, slope = loss_and_slope(objective, single)
    assert loss.isfinite()
    assert slope.isfinite().all()


def row(scores, graded, **columns):
    message = (Message("user", "Hi"),)
    responses = tuple((Message("assistant", text),) for text in "abc"[: len(scores)])
    return PreferenceRow(
        prompt=message,
        responses=responses,
        scores=scores,
        graded=graded,
        origin="x.jsonl, row 1",
        columns=columns,
    )


def rows_of(*rows):
    class Summary:
        comparable = len(rows)

    return type("Rows", (), {"rows": rows, "summary": Summary})


@pytest.mark.parametrize(
    "objective", [SPPO(), GPO(), ListNet(), EVERY[8]], ids=lambda one: type(one).__name__
)
def test_labels_are_refused_where_grades_are_needed(objective):
    said = (
        r"needs scores whose differences mean something, but x.jsonl, row 1 \((train|val)\) says only which"
    )
    for split in ("train", "val"):
        with pytest.raises(DataError, match=said):
            check_rows(objective, {split: rows_of(row((1.0, 0.0), False))})
    batch = PreferenceBatch(
        index=torch.tensor([0]),
        split="train",
        rows=[row((1.0, 0.0), False)],
        trees={},
        present=torch.ones(1, 2, dtype=torch.bool),
        scores=torch.tensor([[1.0, 0.0]]),
        graded=torch.tensor([False]),
    )
    with pytest.raises(DataError, match=said):
        check_scores(objective, batch)
    assert not objective(batch_of(POLICY[:2], (1.0, 0.0), REFERENCE[:2], graded=False)).counted.any()


@pytest.mark.parametrize(
    ("objective", "score", "said"),
    [
        (LambdaLoss(), 31.0, "expects scores from -30.0 to 30.0"),
        (SoftmaxCrossEntropy(), -1.0, "expects scores from 0.0 to inf"),
        (SPPO(win_rates=GivenWinRates()), 1.5, "expects scores from 0.0 to 1.0"),
    ],
)
def test_scores_of_no_use_are_refused(objective, score, said):
    with pytest.raises(DataError, match=f"{said}, .*: rescale the scores"):
        check_rows(objective, {"train": rows_of(row((score, 0.5), True))})


def test_a_proposal_that_can_not_be_read_is_refused():
    brain = BRAIn(temperature=1.0, proposal=ColumnProposal("sampled"))
    for value, split in ((-3.0, "train"), (("a", "b"), "train"), ((-1.0, 0.5), "val")):
        with pytest.raises(
            ContractError,
            match=rf"one log-prob per response, at most 0, .*row 1 \({split}\) has",
        ):
            check_rows(brain, {split: rows_of(row((1.0, 0.0), True, sampled=value))})
    with pytest.raises(ConfigError, match="number must be 0 or more"):
        ReferenceProposal(-1)


def test_unknown_scores_are_left_out():
    """They take no rank, no share of a target, and are no opponent."""
    for objective in EVERY:
        whole = batch_of(POLICY, (4.0, 2.0, NAN, 1.0), REFERENCE)
        part = batch_of(*([v[i] for i in (0, 1, 3)] for v in (POLICY, (4.0, 2.0, NAN, 1.0), REFERENCE)))
        torch.testing.assert_close(objective(whole).loss, objective(part).loss)

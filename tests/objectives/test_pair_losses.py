"""Closed forms of the losses on pairs: stationary points, slopes, and which method is a case of which."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from pl_prefopt import objectives
from pl_prefopt.data.formats import to_row
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.functional import anchored, links
from pl_prefopt.objectives import (
    AOT,
    BCO,
    CDPO,
    CPO,
    DNO,
    DPO,
    EXO,
    INPO,
    IPO,
    NCA,
    OSP,
    RRHF,
    SFT,
    VPO,
    XPO,
    AlphaPO,
    AOTUnpaired,
    APODown,
    APOZero,
    APOZeroUnpaired,
    BCOPair,
    DNOPrct,
    FlexDPO,
    GammaDPO,
    LengthDPO,
    NormDPO,
    SimPO,
    SmPO,
    SPPOHard,
)
from pl_prefopt.objectives.examples import example
from pl_prefopt.rows import Columns
from tests.frozen.batches import frozen_batch


def slope(function, *values):
    """The derivatives of a scalar function at these numbers, in float64."""
    points = [torch.tensor(float(value), dtype=torch.float64, requires_grad=True) for value in values]
    return [each.item() for each in torch.autograd.grad(function(*points), points)]


def batch(*, references=1, columns=None):
    made = frozen_batch(references=references, views={})
    return dataclasses.replace(made, columns=columns or {})


def learned(objective, rows):
    """Loss, reward, and the gradient at the policy's log-probs."""
    sums = rows.policy.sum.detach().requires_grad_()
    outcome = objective(dataclasses.replace(rows, policy=dataclasses.replace(rows.policy, sum=sums)))
    return outcome.loss, torch.autograd.grad(outcome.loss.sum(), sums)[0]


def check_same(one, other, rows, *, other_rows=None):
    for mine, its in zip(learned(one, rows), learned(other, other_rows or rows), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


def pairs(policy, reference, **given):
    """One prompt per pair of numbers."""
    made = [example(p, r, **given) for p, r in zip(policy, reference, strict=True)]
    first = made[0]
    return dataclasses.replace(
        first,
        policy=dataclasses.replace(
            first.policy,
            sum=torch.cat([each.policy.sum for each in made]).double(),
            length=torch.cat([each.policy.length for each in made]),
        ),
        references=torch.cat([each.references for each in made], dim=1).double(),
        scores=torch.cat([each.scores for each in made]).double(),
        present=torch.cat([each.present for each in made]),
        graded=torch.cat([each.graded for each in made]),
    )


# --- functions of the margin


def test_discopop_has_its_published_minimum_and_maximum_and_rises_where_training_begins():
    def loss(z):
        return links.discopop(z, tau=0.05)

    assert slope(loss, 0.0)[0] == pytest.approx((1 - math.log(2)) / (4 * 0.05) - 0.75, rel=1e-12)
    for z, value, below in ((-0.11857, 0.785924, True), (0.07201, 0.87829, False)):
        at = torch.tensor([z - 0.01, z, z + 0.01], dtype=torch.float64)
        left, here, right = loss(at).tolist()
        assert here == pytest.approx(value, abs=5e-7 if below else 5e-6)
        assert (here < min(left, right)) if below else (here > max(left, right))
        assert slope(loss, z)[0] == pytest.approx(0.0, abs=1e-3)
    grid = torch.linspace(-2.5, -2.2, 300_001, dtype=torch.float64)
    assert grid[loss(0.05 * grid).argmin()].item() == pytest.approx(-2.3714, abs=1e-4)


def test_exo_is_a_kl_divergence():
    z, epsilon = torch.linspace(-9, 9, 37, dtype=torch.float64), 1e-3
    q = torch.stack([z.sigmoid(), (-z).sigmoid()])
    label = torch.tensor([1 - epsilon, epsilon], dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(links.exo(z, epsilon=epsilon), (q * (q / label).log()).sum(dim=0))
    logit = math.log((1 - epsilon) / epsilon)
    for at in (-3.0, 0.5, logit):
        share = 1 / (1 + math.exp(-at))
        expected = share * (1 - share) * (at - logit)
        assert slope(lambda x: links.exo(x, epsilon=epsilon), at)[0] == pytest.approx(expected, abs=1e-12)
    start = links.exo(torch.zeros(1, dtype=torch.float64), epsilon=epsilon).item()
    assert start == pytest.approx(-math.log(2) - 0.5 * math.log(epsilon * (1 - epsilon)))


# --- functions of both rewards


def test_nca_pulls_the_chosen_reward_to_log_2():
    assert slope(anchored.nca_pair, math.log(2), 0.0)[0] == pytest.approx(0.0, abs=1e-12)
    assert slope(anchored.nca_pair, 0.0, 0.0) == pytest.approx([-0.25, 0.25])
    assert slope(anchored.nca_pair, 1.0, 0.0)[0] > 0


def test_apo_down_moves_the_chosen_response_down_where_it_is_nearer_than_the_margin():
    assert slope(anchored.apo_down, 0.0, 0.0)[0] == 0
    for chosen, rejected in ((0.5, -1.0), (1.0, 0.9), (-0.4, -0.3), (-0.2, 0.7)):
        down = slope(anchored.apo_down, chosen, rejected)[0] > 0
        assert down == (abs(chosen) < abs(chosen - rejected))


def test_apo_zero_is_bounded_and_so_is_its_slope():
    for chosen, rejected in ((0.0, 0.0), (8.0, -8.0), (-8.0, 8.0)):
        value = anchored.apo_zero(torch.tensor(chosen), torch.tensor(rejected)).item()
        assert 0 < value < 2
        assert max(map(abs, slope(anchored.apo_zero, chosen, rejected))) <= 0.25


def test_sppo_hard_is_ipos_loss_and_a_pull_of_the_level():
    chosen, rejected, beta = torch.tensor([0.3, -2.0]), torch.tensor([-0.1, 1.5]), 0.2
    margin, level = (chosen - rejected) / beta, (chosen + rejected) / beta
    expected = 0.5 * (margin - 1 / beta) ** 2 + 0.5 * level**2
    torch.testing.assert_close(anchored.sppo_hard(chosen, rejected, beta=beta), expected)


def test_bco_on_pairs_is_dpo_and_more():
    u, v = torch.tensor([0.3, -2.0, 4.0]), torch.tensor([-0.1, 1.5, 0.0])
    more = (1 + ((-u).exp() + v.exp()) / (1 + (v - u).exp())).log()
    torch.testing.assert_close(anchored.bco_pair(u, v), -logsigmoid(u - v) + more)


# --- one method is a case of another


def test_methods_that_are_dpo_in_a_case():
    rows, dpo = batch(), DPO(beta=0.2)
    check_same(CDPO(beta=0.2, label_smoothing=0.0), dpo, rows)
    check_same(LengthDPO(alpha=0.0, beta=0.2), dpo, rows)
    check_same(GammaDPO(gamma=1.0, beta=0.2), dpo, rows)
    check_same(FlexDPO(beta_chosen=0.2, beta_rejected=0.2), dpo, rows)
    check_same(VPO(alpha=0.0, beta=0.2), dpo, rows)
    check_same(CDPO(beta=0.2, label_smoothing=0.3), DPO(beta=0.2, label_smoothing=0.3), rows)
    offset = objectives.ScoreGap(alpha=1e-300)
    check_same(objectives.ODPO(offset=offset, beta=0.2), dpo, rows)
    same = dataclasses.replace(rows, policy=dataclasses.replace(rows.policy, length=rows.present * 5))
    check_same(NormDPO(beta=1.0), dpo, same)


def test_methods_without_a_reference_that_are_cases_of_others():
    rows = batch(references=0)
    check_same(GammaDPO(gamma=0.0, beta=0.2), CPO(beta=0.2, nll_weight=0.0), batch(), other_rows=rows)
    check_same(AlphaPO(alpha=0.0, beta=2.0, gamma=0.5), SimPO(beta=2.0, gamma=0.5), rows)
    check_same(objectives.CPOSimPO(beta=2.0, gamma=0.5, nll_weight=0.0), SimPO(beta=2.0, gamma=0.5), rows)
    ones = dataclasses.replace(rows, policy=dataclasses.replace(rows.policy, length=rows.present * 1))
    slic = objectives.SLiCHF(delta=0.0, nll_weight=0.3)
    single = dataclasses.replace(ones, scores=ones.scores[1:2], present=ones.present[1:2])
    single = dataclasses.replace(
        single,
        policy=dataclasses.replace(ones.policy, sum=ones.policy.sum[1:2], length=ones.policy.length[1:2]),
        references=ones.references[:, 1:2],
        graded=ones.graded[1:2],
    )
    check_same(slic, RRHF(nll_weight=0.3), single)  # one pair of responses of one token


def test_flex_dpo_weighs_the_two_gradients():
    rows = pairs([[-8.0, -9.0]], [[-10.0, -10.0]])
    _, gradient = learned(FlexDPO(beta_chosen=0.3, beta_rejected=0.1), rows)
    assert (gradient[0, 1] / gradient[0, 0]).item() == pytest.approx(-1 / 3)
    _, tuned = learned(FlexDPO(beta_chosen=0.3, beta_rejected=0.1, sft_weight=0.5), rows)
    assert (tuned - gradient).tolist() == [[pytest.approx(-0.5), 0.0]]


def test_the_length_penalty_recovers_the_reward_of_the_penalised_optimum():
    """π ∝ π_ref exp((r − α|y|)/β) maximises E[r − α|y|] − β KL; the loss's margin must then be that of r."""
    beta, alpha, reward, lengths = 0.5, 0.1, (2.0, 0.5), (9, 4)
    reference = [-10.0, -7.0]
    best = [ref + (r - alpha * n) / beta for ref, r, n in zip(reference, reward, lengths, strict=True)]
    found = LengthDPO(alpha=alpha, beta=beta)(example(best, reference, lengths=lengths)).loss
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-(reward[0] - reward[1])))), rel=1e-5)
    # A longer winner is learned less from.
    weights = [
        -learned(LengthDPO(alpha=alpha), pairs([reference], [reference], lengths=n))[1][0, 0]
        for n in ((9, 4), (4, 9))
    ]
    assert weights[0] < weights[1]


def test_inpo_is_ipo_at_its_ends_and_with_equal_references():
    both = batch(references=2)
    first, second = (dataclasses.replace(both, references=both.references[k : k + 1]) for k in (0, 1))
    check_same(INPO(eta=0.2, tau=0.2), IPO(beta=0.2), both, other_rows=first)
    check_same(INPO(eta=0.2, tau=0.0), IPO(beta=0.2), both, other_rows=second)
    equal = dataclasses.replace(both, references=both.references[:1].expand(2, -1, -1))
    check_same(INPO(eta=0.2, tau=0.07), IPO(beta=0.2), equal, other_rows=first)


def test_inpo_rests_at_the_optimum_of_its_round():
    """π ∝ π_t^(1 − τ/η) π_ref^(τ/η) exp(P(y ≻ π_t)/η), for a pair won with probability p."""
    eta, tau, p = 0.2, 0.05, 0.7
    reference, previous = (-3.0, -2.5), (-2.0, -4.0)
    wins = (0.25 + p / 2, 0.25 + (1 - p) / 2)  # against π_t, alike in both
    best = [
        (1 - tau / eta) * now + tau / eta * ref + win / eta
        for now, ref, win in zip(previous, reference, wins, strict=True)
    ]
    gradients = []
    for scores in ((1.0, 0.0), (0.0, 1.0)):
        made = example(best, reference, previous, scores=scores)
        gradients.append(learned(INPO(eta=eta, tau=tau), made)[1])
    torch.testing.assert_close(p * gradients[0], -(1 - p) * gradients[1], rtol=1e-4, atol=1e-5)


def test_dpo_moves_the_less_likely_response_more():
    """In probabilities ∂L/∂π_l : ∂L/∂π_w = −π_w/π_l, the first of the 3D properties (arXiv 2406.07327)."""
    better, worse = slope(lambda p, q: -logsigmoid(0.1 * (p.log() - q.log() - math.log(2))), 0.3, 0.02)
    assert worse / better == pytest.approx(-0.3 / 0.02)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (DPO(), math.log(2)),
        (objectives.Hinge(), 1),
        (IPO(beta=0.2, normalize="mean"), 1 / (4 * 0.2**2)),
        (EXO(epsilon=0.01), -math.log(2) - math.log(0.01 * 0.99) / 2),
        (NCA(), 2 * math.log(2)),
        (objectives.RobustDPO(flip_rate=0.1), math.log(2)),
        (BCOPair(), 2 * math.log(2)),
        (SPPOHard(beta=0.2), 1 / (2 * 0.2**2)),
        (AOT(), math.log(2)),
        (AOTUnpaired(), math.log(2)),
        (APOZero(), 1),
        (APODown(), 1),
        (objectives.DiscoPOP(), math.log(2) / 2 + 0.5),
        (NormDPO(beta=2.0), math.log(2)),
        (APOZeroUnpaired(), 0.5),
        (BCO(), math.log(2)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_policy_that_is_its_reference_has_a_known_loss(objective, value):
    made = example([-8.0, -11.0], [-8.0, -11.0], lengths=[4, 7])
    assert objective(made).loss.item() == pytest.approx(value, rel=1e-6)


def test_xpo_is_online_vpo_on_the_references_samples():
    marks = {"reference_sample": torch.arange(64).view(8, 8) % 3 == 0}
    rows = batch(columns=marks)
    vpo = VPO(alpha=0.3, beta=0.2, calibration="reference_samples", online=True)
    check_same(XPO(alpha=0.06, beta=0.2), vpo, rows)
    offline = VPO(alpha=0.3, beta=0.2, calibration="reference_samples")
    plain, up, down = (learned(each, rows)[1] for each in (DPO(beta=0.2), vpo, offline))
    torch.testing.assert_close(up - plain, plain - down)
    assert (up - plain).any()


def test_vpo_on_chosen_responses_is_dpo_and_fine_tuning():
    rows = pairs([[-8.0, -9.0], [-4.0, -2.0]], [[-10.0, -10.0], [-3.0, -3.0]])
    plain, gradient = learned(DPO(beta=0.2), rows)
    for on, share in (("chosen", [1.0, 0.0]), ("rejected", [0.0, 1.0]), ("both", [0.5, 0.5])):
        loss, with_term = learned(VPO(alpha=0.5, beta=0.2, calibration=on), rows)
        torch.testing.assert_close(with_term - gradient, torch.tensor([share, share]).double() * -0.1)
        torch.testing.assert_close(loss - plain, -0.1 * (rows.policy.sum * torch.tensor(share)).sum(dim=1))


# --- soft labels


def test_soft_labels():
    z, q = 1.3, 0.8
    rows = pairs([[-10.0 + z, -10.0]], [[-10.0, -10.0]])
    labelled = dataclasses.replace(rows, columns={"preference": torch.tensor([q], dtype=torch.float64)})
    loss, gradient = learned(OSP(beta=1.0), labelled)
    assert gradient[0, 0].item() == pytest.approx(1 / (1 + math.exp(-z)) - q, rel=1e-5)
    assert loss.item() == pytest.approx(learned(DPO(beta=1.0), rows)[0].item() + (1 - q) * z)
    check_same(OSP(beta=1.0), CDPO(beta=1.0, label_smoothing=0.2), labelled, other_rows=rows)
    unknown = dataclasses.replace(rows, columns={"preference": torch.tensor([torch.nan])})
    check_same(OSP(beta=1.0), DPO(beta=1.0), unknown, other_rows=rows)
    at_minimum = pairs([[-10.0 + math.log(4), -10.0]], [[-10.0, -10.0]])
    at_minimum = dataclasses.replace(at_minimum, columns=labelled.columns)
    assert learned(OSP(beta=1.0), at_minimum)[1].abs().max().item() == pytest.approx(0.0, abs=1e-6)


def test_votes_give_each_pair_the_winners_part():
    margin = math.log(7 / 3)  # logit of 7 votes of 10
    rows = pairs([[-10.0 + margin, -10.0], [-10.0 + 1.0, -10.0]], [[-10.0, -10.0]] * 2)
    votes = torch.tensor([[7, 3], [0, 2]])
    loss, gradient = learned(OSP(beta=1.0, column="v"), dataclasses.replace(rows, columns={"v": votes}))
    assert gradient[0].abs().max().item() == pytest.approx(0.0, abs=1e-6)
    assert loss[1].item() == pytest.approx(-math.log(1 / (1 + math.e)), rel=1e-5)  # all votes for the other
    shares = dataclasses.replace(rows, columns={"v": torch.tensor([0.7, 0.0])})
    torch.testing.assert_close(learned(OSP(beta=1.0, column="v"), shares)[0], loss)
    some = dataclasses.replace(rows, columns={"v": torch.tensor([[7.0, 3.0], [torch.nan, 1.0]])})
    torch.testing.assert_close(
        learned(OSP(beta=1.0, column="v"), some)[0][1], learned(DPO(beta=1.0), rows)[0][1]
    )


def test_dno_is_stationary_where_margins_equal_score_gaps():
    rows = pairs([[-8.5, -10.0]], [[-10.0, -10.0]], scores=[4.0, 2.5])
    assert learned(DNO(eta=1.0), rows)[1].abs().max().item() == pytest.approx(0.0, abs=1e-12)


def test_dno_prct_is_dpo_on_far_pairs():
    rows = batch()
    objective = DNOPrct(beta=0.2, min_score=5.0, min_gap=2.0)
    check_same(objective, DPO(beta=0.2, pairing=objective.structure.pairing), rows)
    counted = objective(rows).counted
    far = [[w >= 5 and w - l >= 2 for w in row for l in row] for row in rows.scores.tolist()]  # noqa: E741
    assert counted.tolist() == [any(row) for row in far]


def test_smpo_weighs_the_margin_by_the_normalised_gap():
    rows = pairs([[-8.0, -10.0]], [[-10.0, -10.0]], scores=[7.0, 4.0])
    p = 1 / (1 + math.exp(-(7 - 4) / 9))
    found = learned(SmPO(beta=0.1, score_range=(1.0, 10.0), gamma=10.0), rows)[0].item()
    assert found == pytest.approx(math.log1p(math.exp(-10 * (2 * p - 1) * 0.2)))
    whole = SmPO(beta=0.1, score_range=(1.0, 10.0))
    far = pairs([[-9.0, -10.0]], [[-10.0, -10.0]], scores=[10.0, 1.0])
    assert learned(whole, far)[0].item() == pytest.approx(math.log1p(math.exp(-4.6212 * 0.1)), rel=1e-5)


def test_the_adaptive_margin_reads_strengths_of_pairs_or_rewards_of_responses():
    rows = pairs([[-8.0, -10.0]] * 2, [[-10.0, -10.0]] * 2)
    objective = objectives.AdaptiveMarginDPO(beta=1.0)
    per_row = dataclasses.replace(rows, columns={"strength": torch.tensor([2.5, torch.nan])})
    rewards = torch.tensor([[3.0, 0.5], [torch.nan, 1.0]])
    per_response = dataclasses.replace(rows, columns={"strength": rewards})
    expected = [math.log1p(math.exp(0.5)), math.log1p(math.exp(-2.0))]
    for given in (per_row, per_response):
        assert learned(objective, given)[0].tolist() == pytest.approx(expected)


# --- AOT


def test_aot_with_one_pair_is_cdpo():
    rows = pairs([[-8.0, -9.0]], [[-10.0, -10.0]])
    for objective in (AOT(beta=0.3, label_smoothing=0.1), AOTUnpaired(beta=0.3, label_smoothing=0.1)):
        check_same(objective, CDPO(beta=0.3, label_smoothing=0.1), rows)


POLICY = [[-8.0, -9.0], [-4.0, -7.0], [-6.0, -2.0], [-5.0, -5.5]]
REFERENCE = [[-9.0, -7.0], [-4.5, -5.0], [-8.0, -3.0], [-2.0, -6.0]]


def test_aot_is_at_most_dpo_and_dpo_where_margins_are_ordered_alike():
    rows = pairs(POLICY, REFERENCE)
    assert learned(AOT(beta=0.3), rows)[0].sum() < learned(DPO(beta=0.3), rows)[0].sum()
    assert learned(AOTUnpaired(beta=0.3), rows)[0].sum() < learned(DPO(beta=0.3), rows)[0].sum()
    alike = pairs(POLICY, [[0.5 * chosen, 0.5 * rejected] for chosen, rejected in POLICY])
    check_same(AOT(beta=0.3), DPO(beta=0.3), alike)


def test_aot_does_not_care_which_reference_margin_belongs_to_which_pair():
    rows, order = pairs(POLICY, REFERENCE), torch.tensor([2, 0, 3, 1])
    other = dataclasses.replace(rows, references=rows.references[:, order])
    check_same(AOT(beta=0.3), AOT(beta=0.3), rows, other_rows=other)


def test_unpaired_aot_does_not_care_which_rejected_response_belongs_to_which_chosen_one():
    rows, order = pairs(POLICY, REFERENCE), torch.tensor([2, 0, 3, 1])

    def mixed(values):
        return torch.stack([values[..., 0], values[..., order, 1]], dim=-1)

    other = dataclasses.replace(
        rows,
        policy=dataclasses.replace(rows.policy, sum=mixed(rows.policy.sum)),
        references=mixed(rows.references),
    )
    loss, gradient = learned(AOTUnpaired(beta=0.3), rows)
    mixed_loss, mixed_gradient = learned(AOTUnpaired(beta=0.3), other)
    torch.testing.assert_close(mixed_loss.sum(), loss.sum())
    torch.testing.assert_close(mixed_gradient, mixed(gradient))


# --- without a reference


def test_alphapos_slope_is_a_power_of_the_likelihood():
    rows = pairs([[-8.0, -6.0]], [[0.0, 0.0]])
    score = objectives.TransformedMeanLogProb(beta=2.0, alpha=0.25)
    sums = rows.policy.sum.requires_grad_()
    policy = dataclasses.replace(rows.policy, sum=sums)
    reward = score.reward(dataclasses.replace(rows, policy=policy))
    (gradient,) = torch.autograd.grad(reward.sum(), sums)
    torch.testing.assert_close(4 * gradient, 2 * (sums / 4).exp() ** -0.25)


def test_asft_in_closed_form_and_never_below_orpo():
    rows = batch(references=0)
    loss, _ = learned(objectives.ASFT(weight=0.5), rows)
    assert (loss >= learned(objectives.ORPO(weight=0.5), rows)[0] - 1e-12).all()
    two = pairs([[-4.0, -2.0]], [[0.0, 0.0]])
    found, gradient = learned(objectives.ASFT(weight=0.5), two)
    assert found.item() == pytest.approx(1.5 * 1.0 - 0.5 * math.log1p(-math.exp(-0.5)))
    share = math.exp(-0.5) / (1 - math.exp(-0.5))
    assert gradient[0].tolist() == pytest.approx([-1.5 / 4, 0.5 * share / 4])


def test_rrhf_adds_the_pairs_that_are_ranked_wrong():
    rows = example([-8.0, -4.0, -6.0], scores=[3.0, 2.0, 1.0])
    assert RRHF(nll_weight=0.0)(rows).loss.item() == pytest.approx((2 - 1) + (2 - 1.5))
    assert RRHF(nll_weight=0.1)(rows).loss.item() == pytest.approx(1.5 + 0.8)


# --- fine-tuning


@pytest.mark.parametrize(
    ("responses", "scores", "expected"),
    [
        ("best", [3.0, 2.0, 3.0], [True, False, True]),
        ("chosen", [3.0, 2.0, 1.0], [True, True, False]),
        ("desirable", [3.0, 0.4, math.nan], [True, False, False]),
        ("all", [3.0, math.nan, math.nan], [True, True, True]),
        ("best", [1.0, math.nan, math.nan], [True, False, False]),
        ("best", [0.0, math.nan, math.nan], [False, False, False]),
        ("best", [2.0, 2.0, 2.0], [False, False, False]),
    ],
)
def test_fine_tuning_imitates(responses, scores, expected):
    rows = example([-8.0, -4.0, -6.0], scores=scores, lengths=[4, 2, 3])
    found = SFT(responses=responses).imitated(rows.scores, rows.present)
    assert found.tolist() == [expected]
    means = [loss for loss, chosen in zip([2.0, 2.0, 2.0], expected, strict=True) if chosen]
    assert SFT(responses=responses)(rows).loss.item() == pytest.approx(sum(means) / max(len(means), 1))


def test_fine_tuning_weighs_prompts_or_tokens():
    rows = pairs([[-8.0, -1.0], [-2.0, -1.0]], [[0.0, 0.0]] * 2)
    rows = dataclasses.replace(
        rows, policy=dataclasses.replace(rows.policy, length=torch.tensor([[2, 5], [6, 5]]))
    )
    assert SFT()(rows).loss.tolist() == pytest.approx([4.0, 1 / 3])
    assert SFT(average="token")(rows).loss.mean().item() == pytest.approx(10 / 8)


# --- single responses


def test_bco_shifts_by_the_mean_of_all_rewards_so_far():
    objective = BCO(beta=0.5)
    first, second = pairs([[-8.0, -10.0]], [[-10.0, -10.0]]), pairs([[-4.0, -10.0]], [[-10.0, -10.0]])
    objective(first)
    loss, gradient = learned(objective, second)
    delta = (0.5 * 2 + 0 + 0.5 * 6 + 0) / 4
    assert objective(second).stats["delta"].item() != pytest.approx(delta)  # each pass counts
    expected = [math.log1p(math.exp(-(3.0 - delta))), math.log1p(math.exp(-delta))]
    assert loss.item() == pytest.approx(sum(expected) / 2)
    assert gradient[0, 0].item() == pytest.approx(-0.5 * 0.5 / (1 + math.exp(3.0 - delta)))
    state = objective.state_dict()
    again = BCO(beta=0.5)
    again.load_state_dict(state)
    before = again.eval()(second)
    assert torch.equal(before.loss, objective.eval()(second).loss)
    assert torch.equal(again(second).loss, before.loss), "evaluation leaves the mean as it is"


def test_bcos_density_ratio_weighs_undesirable_responses():
    rows = pairs([[-10.0, -10.0]] * 4, [[-10.0, -10.0]] * 4)
    rows = dataclasses.replace(rows, columns={"p": torch.tensor([0.6, 0.01, 0.99, torch.nan])})
    loss = BCO(probability_column="p")(rows).loss / (math.log(2) / 2) - 1
    assert loss.tolist() == pytest.approx([1.5, 0.5, 10.0, 1.0])


def test_unpaired_apo_zero_is_half_of_the_paired_one():
    rows = pairs(POLICY, REFERENCE)
    half = learned(APOZeroUnpaired(beta=0.3), rows)
    whole = learned(APOZero(beta=0.3), rows)
    for one, two in zip(half, whole, strict=True):
        torch.testing.assert_close(2 * one, two)


# --- extremes and settings

NEW = {
    "exo": EXO(),
    "nca": NCA(beta=1.0),
    "bco_pair": BCOPair(beta=1.0),
    "sppo": SPPOHard(),
    "apo_zero": APOZero(),
    "apo_down": APODown(),
    "discopop": objectives.DiscoPOP(beta=1.0),
    "flex": FlexDPO(beta_chosen=1.0, beta_rejected=0.5, sft_weight=1.0),
    "norm": NormDPO(beta=5.0),
    "gamma": GammaDPO(gamma=0.5, beta=1.0),
    "vpo": VPO(alpha=1.0, calibration="both"),
    "aot": AOT(beta=1.0),
    "aot_unpaired": AOTUnpaired(beta=1.0),
    "dno": DNO(eta=1.0),
    "smpo": SmPO(beta=1.0, score_range=(0.0, 1.0)),
    "length": LengthDPO(alpha=1.0, beta=1.0),
    "cpo": CPO(beta=1.0),
    "alphapo": AlphaPO(),
    "slic": objectives.SLiCHF(delta=1.0, nll_weight=1.0),
    "rrhf": RRHF(nll_weight=1.0),
    "asft": objectives.ASFT(weight=1.0),
    "sft": SFT(),
    "bco": BCO(beta=1.0),
    "apo_unpaired": APOZeroUnpaired(beta=1.0),
}


@pytest.mark.parametrize("name", NEW)
def test_extreme_log_probs_in_float32_give_finite_losses_and_gradients(name):
    for policy in ([-1e4, -1e-3], [-1e-3, -1e4], [-5e3, -6e3], [-1e4, -1e4], [0.0, 0.0]):
        for reference in ([-1e4, -1e4], [-5.0, -1e3], [-1e3, -5.0]):
            rows = example(policy, reference, lengths=[1, 1])
            rows = dataclasses.replace(rows, references=rows.references[: NEW[name].needs.min_references])
            loss, gradient = learned(NEW[name], rows)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: EXO(epsilon=0.0), "epsilon must be above 0"),
        (lambda: objectives.DiscoPOP(tau=1.0), "tau must be above 0 and below 1"),
        (lambda: INPO(eta=0.1, tau=0.2), "tau must be at least 0 and at most eta"),
        (lambda: VPO(alpha=-1.0), "alpha must be 0 or more"),
        (lambda: VPO(alpha=1.0, calibration="best"), "on must be one of chosen, rejected"),
        (lambda: DNOPrct(min_gap=0.0), "min_gap must be above 0"),
        (lambda: SmPO(beta=0.1, score_range=(2.0, 1.0)), "score_range must be"),
        (lambda: SFT(responses="good"), "responses must be one of best"),
        (lambda: SFT(average="batch"), "average must be"),
        (lambda: GammaDPO(gamma=-0.5), "gamma must be 0 or more"),
        (lambda: objectives.GeometricLogRatio(0.1, (0.5, 0.6)), "weights must be numbers"),
        (
            lambda: objectives.Compose(
                score=objectives.LogRatio(), link=objectives.AnchoredZero(), offsets=[objectives.Margin(1.0)]
            ),
            "AnchoredZero is a loss of two rewards",
        ),
        (
            lambda: objectives.Compose(
                score=objectives.LogRatio(),
                structure=objectives.PlackettLuce(),
                label=objectives.ScoreLabel(),
            ),
            "PlackettLuce merges margins",
        ),
    ],
)
def test_settings_out_of_range_are_named(build, said):
    with pytest.raises(ConfigError, match=said):
        build()


PAIRS = [{"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}]


def with_column(values, **more):
    return [{**PAIRS[0], **more, "extra": value} for value in values]


@pytest.mark.parametrize(
    ("objective", "rows", "said"),
    [
        (
            objectives.ODPO(offset=objectives.ScoreGap(1.0)),
            PAIRS,
            "ScoreGap learns from differences of scores",
        ),
        (DNOPrct(), PAIRS, "winner scores at least 5 and 2 more than the loser"),
        (OSP(beta=0.1, column="extra"), with_column([0.5, 1.5]), "numbers from 0 to 1 .* got 1.5 in"),
        (OSP(beta=0.1, column="extra"), with_column([[2, -1]]), "numbers from 0 to inf .* got -1 in"),
        (OSP(beta=0.1, column="extra"), with_column([[3, 1], [0, 0]]), "got two responses without votes"),
        (
            BCO(probability_column="extra"),
            with_column([[0.5, 0.5]]),
            "one probability per row .* got one for",
        ),
        (OSP(beta=0.1, column="extra"), with_column([None]), "none of the 1 train rows has one"),
        (
            objectives.AdaptiveMarginDPO(column="extra"),
            [{"prompt": "Hi.", "responses": ["a", "b", "c"], "scores": [3, 2, 1], "extra": 0.5}],
            "one number per response in the column 'extra' of a row with 3 responses",
        ),
        (XPO(column="extra"), with_column([True]), "true or false per response .* got single values"),
        (XPO(column="extra"), with_column([[False, False]]), "to mark responses with true"),
        (BCO(probability_column="extra"), with_column([2.0]), "numbers from 0 to 1"),
        (SFT(responses="desirable", desirable_above=2.0), PAIRS, "SFT imitates the desirable responses"),
        (
            APOZeroUnpaired(desirable_above=1.0),
            PAIRS,
            "APOZeroUnpaired needs desirable and undesirable responses",
        ),
    ],
)
def test_rows_without_what_an_objective_reads_are_refused(objective, rows, said):
    with pytest.raises((ContractError, DataError), match=said):
        objective.check_training_rows([columned(fields) for fields in rows])


def test_objectives_of_score_differences_ask_for_grades():
    """The module refuses rows of bare labels then, see `tests/objectives/test_lists.py`."""
    for objective in (DNO(eta=0.1), SmPO(beta=0.1, score_range=(0.0, 1.0))):
        assert objective.needs.graded


def columned(fields):
    """A row with the column ``extra``, as the data module makes it."""
    row = to_row({name: value for name, value in fields.items() if name != "extra"})
    return dataclasses.replace(row, columns=Columns({"extra": fields.get("extra")}))


def test_fine_tuning_on_all_responses_needs_no_scores():
    SFT(responses="all").check_training_rows([to_row({"prompt": "Hi.", "responses": ["Yes.", "No."]})])

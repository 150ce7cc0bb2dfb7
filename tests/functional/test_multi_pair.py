"""MPPO's losses by hand, by their closed forms with gradients in float64, and against plain loops."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_prefopt import functional

DOUBLE, NAN = torch.float64, float("nan")
getcontext().prec = 60
PAIRED = {
    "mns": functional.pair_mns,
    "mnm": functional.pair_mnm,
    "mcs": functional.pair_mcs,
    "mcm": functional.pair_mcm,
    "list_mle": functional.list_mle,
}
LIKELIHOOD = st.floats(1e-3, 1.0)


def single_of(place):
    """Pair-Single with a given response drawn."""

    def loss(log_likelihood, scores, present, **settings):
        drawn = torch.zeros_like(present)
        drawn[:, place] = True
        return functional.pair_single(log_likelihood, scores, present, drawn, **settings)

    return loss


def one(p, scores=None):
    """ℓ̄, scores and `present` of one prompt, its responses best first unless `scores` says otherwise."""
    p = torch.as_tensor(p, dtype=DOUBLE)[None]
    scores = torch.arange(p.shape[1], 0, -1) if scores is None else torch.as_tensor(scores)
    return p.log().requires_grad_(), scores.to(DOUBLE)[None], torch.ones(p.shape, dtype=torch.bool)


def gradient_in_p(loss, p, scores=None, **settings):
    """∂loss/∂p of one prompt, from ∂loss/∂ℓ̄ = p ∂loss/∂p."""
    log_likelihood, *rest = one(p, scores)
    loss(log_likelihood, *rest, **settings).loss.sum().backward()
    return (log_likelihood.grad / log_likelihood.detach().exp())[0].tolist()


def value(loss, p, scores=None, **settings):
    return loss(*one(p, scores), **settings).loss.item()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log1p(math.exp(x))


# --- by hand: p = 0.5, 0.4, 0.2, best first


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (single_of(1), softplus(-0.1)),
        (single_of(2), softplus(-0.3)),
        (functional.pair_mns, softplus(-0.1) + softplus(-0.3)),
        (functional.pair_mnm, softplus(-0.4)),
        (functional.pair_mcs, softplus(-0.1) + softplus(-0.3) + softplus(-0.2)),
        (functional.pair_mcm, softplus(-0.6)),
        (
            functional.list_mle,
            math.log((math.exp(0.5) + math.exp(0.4) + math.exp(0.2)) / math.exp(0.5))
            + math.log((math.exp(0.4) + math.exp(0.2)) / math.exp(0.4)),
        ),
    ],
)
def test_by_hand(loss, expected):
    result = loss(*one([0.5, 0.4, 0.2]))
    assert result.loss.tolist() == pytest.approx([expected], abs=1e-12)
    assert result.counted.tolist() == [True]
    assert result.reward[0].tolist() == pytest.approx([0.5, 0.4, 0.2])
    assert not result.reward.requires_grad


def test_points_by_hand():
    # s = 0.25, p = 0.5: CE −0.25 log 0.5 − 0.75 log 0.5 = log 2; squared error 0.0625.
    log_likelihood, score = torch.tensor([0.5], dtype=DOUBLE).log(), torch.tensor([0.25], dtype=DOUBLE)
    assert functional.point_ce(log_likelihood, score).loss.item() == pytest.approx(math.log(2))
    assert functional.point_mse(log_likelihood, score).loss.item() == pytest.approx(0.0625)
    assert functional.point_ce(log_likelihood, score).reward.item() == pytest.approx(0.5)
    assert functional.point_mse(log_likelihood, score).reward.item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", PAIRED)
def test_temperature_takes_a_root_of_p(name):
    # T = 2: p = 0.25, 0.09 become 0.5, 0.3.
    assert value(PAIRED[name], [0.25, 0.09], temperature=2.0) == pytest.approx(softplus(-0.2))
    assert value(PAIRED[name], [0.25, 0.09]) == pytest.approx(softplus(-0.16))


def test_temperature_of_points_takes_a_root_of_p():
    log_likelihood, score = torch.tensor([0.25], dtype=DOUBLE).log(), torch.tensor([0.9], dtype=DOUBLE)
    for loss in (functional.point_ce, functional.point_mse):
        warm, root = loss(log_likelihood, score, temperature=2.0), loss(log_likelihood / 2, score)
        assert warm.loss.item() == pytest.approx(root.loss.item(), abs=1e-12)
        assert warm.reward.item() == pytest.approx(0.5)


# --- closed forms


@given(LIKELIHOOD, LIKELIHOOD, st.booleans())
def test_with_one_negative_all_are_pair_single(better, worse, swap):
    p, scores = ([worse, better], [1.0, 2.0]) if swap else ([better, worse], [2.0, 1.0])
    single = single_of(0 if swap else 1)
    s = sigmoid(worse - better)
    for loss in PAIRED.values():
        assert value(loss, p, scores) == pytest.approx(value(single, p, scores), abs=1e-12)
        gradient = gradient_in_p(loss, p, scores)
        assert gradient == pytest.approx(gradient_in_p(single, p, scores), abs=1e-12)
        assert gradient == pytest.approx([s, -s] if swap else [-s, s], abs=1e-12)


@given(LIKELIHOOD, LIKELIHOOD)
def test_the_gradient_in_the_log_carries_p(better, worse):
    log_likelihood, scores, present = one([better, worse])
    single_of(1)(log_likelihood, scores, present).loss.sum().backward()
    s = sigmoid(worse - better)
    assert log_likelihood.grad[0].tolist() == pytest.approx([-s * better, s * worse], abs=1e-12)
    assert softplus(-1) <= value(single_of(1), [better, worse]) <= softplus(1)


def test_simpo_has_no_factor_p():
    # Of unlikely responses MPPO's gradient vanishes, SimPO's does not.
    log_likelihood, scores, present = one([2e-5, 1e-5])
    functional.pair_mnm(log_likelihood, scores, present).loss.sum().backward()
    chosen, rejected = log_likelihood.detach()[0].clone().requires_grad_()
    simpo = torch.autograd.grad(functional.simpo(chosen, rejected, beta=1.0, gamma=0.0).loss, chosen)[0]
    assert log_likelihood.grad[0, 0].abs() < 1.1e-5
    assert simpo.abs() > 0.3


@given(st.lists(LIKELIHOOD, min_size=2, max_size=6))
def test_mnm_gives_every_negative_the_same_gradient(p):
    best, *rest = p
    s = sigmoid(sum(rest) - len(rest) * best)
    expected = [-len(rest) * s, *[s] * len(rest)]
    assert gradient_in_p(functional.pair_mnm, p) == pytest.approx(expected, abs=1e-12)


@given(st.lists(LIKELIHOOD, min_size=2, max_size=6))
def test_mns_weighs_every_negative_by_its_own_margin(p):
    best, *rest = p
    each = [sigmoid(other - best) for other in rest]
    assert gradient_in_p(functional.pair_mns, p) == pytest.approx([-sum(each), *each], abs=1e-12)


@pytest.mark.parametrize(
    ("count", "coefficients"), [(2, [1, -1]), (3, [2, 0, -2]), (4, [3, 1, -1, -3]), (5, [4, 2, 0, -2, -4])]
)
def test_mcm_weighs_ranks_evenly_and_promotes_the_runner_up_of_four(count, coefficients):
    p = [0.3, 0.5, 0.2, 0.4, 0.1][:count]
    margin = sum(weight * likelihood for weight, likelihood in zip(coefficients, p, strict=True))
    assert value(functional.pair_mcm, p) == pytest.approx(softplus(-margin))
    expected = [-sigmoid(-margin) * weight for weight in coefficients]
    assert gradient_in_p(functional.pair_mcm, p) == pytest.approx(expected, abs=1e-12)


@given(st.lists(LIKELIHOOD, min_size=2, max_size=6))
def test_jensen(p):
    best, *rest = p
    mean_margin = best - sum(rest) / len(rest)
    assert value(functional.pair_mns, p) >= len(rest) * softplus(-mean_margin) - 1e-9


@pytest.mark.parametrize("name", PAIRED)
def test_only_some_look_at_the_order_of_the_negatives(name):
    p = [0.6, 0.5, 0.3, 0.1]
    scores, relabelled = [4.0, 3.0, 2.0, 1.0], [4.0, 1.0, 3.0, 2.0]
    plain, other = value(PAIRED[name], p, scores), value(PAIRED[name], p, relabelled)
    if name in ("mns", "mnm"):
        assert other == pytest.approx(plain, abs=1e-15)
    else:
        assert other > plain + 1e-3


@pytest.mark.parametrize("name", PAIRED)
def test_the_order_of_the_responses_does_not_matter(name):
    p, scores, order = [0.6, 0.5, 0.3, 0.1], [2.0, 9.0, 1.0, 4.0], [2, 0, 3, 1]
    shuffled = ([p[place] for place in order], [scores[place] for place in order])
    assert value(PAIRED[name], *shuffled) == pytest.approx(value(PAIRED[name], p, scores), abs=1e-12)
    plain = gradient_in_p(PAIRED[name], p, scores)
    expected = [plain[place] for place in order]
    assert gradient_in_p(PAIRED[name], *shuffled) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0.05, 0.95))
def test_point_ce_rests_where_p_is_the_score(score):
    for p, sign in ((score, 0), (0.9 * score, -1), (score + 0.5 * (1 - score), 1)):
        log_likelihood = torch.tensor([p], dtype=DOUBLE).log().requires_grad_()
        functional.point_ce(log_likelihood, torch.tensor([score], dtype=DOUBLE)).loss.sum().backward()
        slope = log_likelihood.grad.item()
        assert abs(slope) < 1e-9 if sign == 0 else slope * sign > 0


@given(st.floats(1e-3, 1.0))
def test_point_mse_is_zero_and_rests_where_p_is_the_score(score):
    log_likelihood = torch.tensor([score], dtype=DOUBLE).log().requires_grad_()
    result = functional.point_mse(log_likelihood, torch.tensor([score], dtype=DOUBLE))
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(0, abs=1e-20)
    assert log_likelihood.grad.item() == pytest.approx(0, abs=1e-12)


@given(st.floats(-30.0, -1e-6))
def test_point_ce_of_the_highest_score_is_the_mean_negative_log_likelihood(mean):
    log_likelihood = torch.tensor([mean], dtype=DOUBLE, requires_grad=True)
    result = functional.point_ce(log_likelihood, torch.ones(1, dtype=DOUBLE))
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(-mean, abs=1e-12)
    assert log_likelihood.grad.item() == pytest.approx(-1.0, abs=1e-12)


def exact_points(mean, score):
    """Loss and gradient of Point-CE and Point-MSE in 60 digits, and the sizes of the terms they add up."""
    mean, score = Decimal(mean), Decimal(score)
    p, rest = mean.exp(), 1 - mean.exp()
    ce = [-score * mean, -(1 - score) * rest.ln()], [-score, (1 - score) * p / rest]
    # s − p is (s − 1) + (1 − p) near p = 1, and what is exact there is not far from it.
    parts = [score - 1, rest] if p > Decimal("0.5") else [score, -p]
    error, size = sum(parts), sum(map(abs, parts))
    mse = (error**2, size**2), (-2 * error * p, 2 * size * p)
    return [(float(sum(terms)), float(sum(map(abs, terms)))) for terms in ce], [
        (float(value), float(bound)) for value, bound in mse
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [0.125, 0.25, 0.5, 0.75, 1.0])
def test_points_are_exact_from_p_of_1_to_p_of_nothing(dtype, score):
    means = [-1e-18, -1e-12, -3e-8, -1e-4, -0.1, -0.69, -0.7, -2.0, -20.0, -80.0]
    for mean in means:
        x = torch.tensor(mean, dtype=dtype, requires_grad=True)
        expected = exact_points(x.item(), score)
        for loss, (value, slope) in zip((functional.point_ce, functional.point_mse), expected, strict=True):
            result = loss(x, torch.tensor(score, dtype=dtype)).loss
            (gradient,) = torch.autograd.grad(result, x)
            for got, (exact, size) in ((result, value), (gradient, slope)):
                assert abs(got.item() - exact) <= 8 * torch.finfo(dtype).eps * size, (mean, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_at_a_log_prob_of_0(dtype):
    score = torch.tensor([1.0, 0.9, 0.1], dtype=dtype)
    x = torch.zeros(3, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(functional.point_ce(x, score).loss.sum(), x)
    # Certain of the best response: likelihood training, pushing up. Of any other: pushed down, and finite.
    assert slope[0] == -1.0
    assert (slope[1:] > 1e5).all()
    assert slope.isfinite().all()
    (slope,) = torch.autograd.grad(functional.point_mse(x, score).loss.sum(), x)
    torch.testing.assert_close(slope, -2 * (score - 1))


# --- ties and unknown scores


@pytest.mark.parametrize("loss", [functional.pair_mns, functional.pair_mnm])
def test_best_responses_that_tie_are_averaged_over(loss):
    p, scores = [0.3, 0.6, 0.5, 0.2], [1.0, 5.0, 5.0, 1.0]
    first, second = (value(loss, [best, 0.3, 0.2], [5.0, 1.0, 1.0]) for best in (0.6, 0.5))
    assert value(loss, p, scores) == pytest.approx((first + second) / 2, abs=1e-12)


def test_tied_responses_make_no_pair():
    p, scores = [0.6, 0.5, 0.2], [2.0, 2.0, 1.0]
    assert value(functional.pair_mcs, p, scores) == pytest.approx(softplus(-0.4) + softplus(-0.3))
    assert value(functional.pair_mcm, p, scores) == pytest.approx(softplus(-0.7))


def test_list_mle_does_not_compare_tied_responses():
    tied = value(functional.list_mle, [0.6, 0.5, 0.2], [2.0, 2.0, 1.0])
    assert tied == pytest.approx(softplus(-0.4) + softplus(-0.3))


@pytest.mark.parametrize("name", PAIRED)
def test_the_order_of_responses_does_not_matter(name):
    log_likelihood, scores, present = ragged(3)
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(4))
    turned = PAIRED[name](log_likelihood[:, order], scores[:, order], present[:, order])
    torch.testing.assert_close(turned.loss, PAIRED[name](log_likelihood, scores, present).loss)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("scores", [[3.0, 3.0, 3.0], [NAN, 1.0, NAN], [NAN, NAN, NAN], [2.0, NAN, 2.0]])
def test_without_two_different_scores_nothing_is_counted(name, scores):
    log_likelihood, *rest = one([0.6, 0.5, 0.2], scores)
    result = PAIRED[name](log_likelihood, *rest)
    result.loss.sum().backward()
    assert result.loss.tolist() == [0.0]
    assert result.counted.tolist() == [False]
    assert (log_likelihood.grad == 0).all()


def test_a_drawn_response_that_ties_with_the_best_is_no_negative():
    result = single_of(1)(*one([0.6, 0.5, 0.2], [2.0, 2.0, 1.0]))
    assert result.loss.tolist() == [0.0]
    assert result.counted.tolist() == [False]


@pytest.mark.parametrize("loss", [functional.pair_mcs, functional.pair_mcm])
def test_a_choice_of_pairs(loss):
    among = torch.zeros(1, 3, 3, dtype=torch.bool)
    among[0, 0, 2] = among[0, 2, 1] = True  # (2, 1) is the wrong way round and so no pair
    assert value(loss, [0.5, 0.4, 0.2], among=among) == pytest.approx(softplus(-0.3))
    both = among.clone()
    both[0, 1, 2] = True
    expected = softplus(-0.3) + softplus(-0.2) if loss is functional.pair_mcs else softplus(-0.5)
    assert value(loss, [0.5, 0.4, 0.2], among=both) == pytest.approx(expected)


# --- against plain loops, on ragged batches with ties and unknown scores


def ragged(seed, prompts=40, responses=6):
    generator = torch.Generator().manual_seed(seed)
    present = torch.arange(responses) < torch.randint(1, responses + 1, (prompts, 1), generator=generator)
    scores = torch.randint(0, 5, present.shape, generator=generator).to(DOUBLE)
    scores[torch.rand(present.shape, generator=generator) < 0.1] = NAN
    scores[~present] = NAN
    log_likelihood = -3 * torch.rand(present.shape, generator=generator, dtype=DOUBLE) - 1e-3
    return log_likelihood.masked_fill(~present, NAN), scores, present


def loops(name, p, scores):
    """Equations 9 to 13 as one writes them down, for the known responses of one prompt."""
    if len(set(scores)) < 2:
        return 0.0
    winners = [place for place in range(len(p)) if scores[place] == max(scores)]
    losers = [place for place in range(len(p)) if scores[place] < max(scores)]
    pairs = [(i, j) for i in range(len(p)) for j in range(len(p)) if scores[i] > scores[j]]
    if name == "mns":
        return np.mean([sum(-scipy.special.log_expit(p[i] - p[j]) for j in losers) for i in winners])
    if name == "mnm":
        total = sum(p[j] for j in losers)
        return np.mean([-scipy.special.log_expit(len(losers) * p[i] - total) for i in winners])
    if name == "mcs":
        return sum(-scipy.special.log_expit(p[i] - p[j]) for i, j in pairs)
    if name == "mcm":
        return -scipy.special.log_expit(sum(p[i] - p[j] for i, j in pairs))
    below = [[p[i], *(p[j] for j in range(len(p)) if scores[j] < scores[i])] for i in range(len(p))]
    return sum(scipy.special.logsumexp(tail) - tail[0] for tail in below)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("seed", [0, 1])
def test_against_loops(name, seed):
    log_likelihood, scores, present = ragged(seed)
    log_likelihood.requires_grad_()
    result = PAIRED[name](log_likelihood, scores, present)
    known = present & ~scores.isnan()
    expected = [
        loops(name, np.exp(row[keep].detach().numpy()), graded[keep].tolist())
        for row, graded, keep in zip(log_likelihood, scores, known, strict=True)
    ]
    assert result.loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert result.counted.tolist() == [loss > 0 for loss in expected]
    assert 5 < result.counted.sum() < len(expected)
    result.loss.sum().backward()
    assert log_likelihood.grad.isfinite().all()
    assert (log_likelihood.grad[~known] == 0).all()
    assert torch.equal(result.reward[present], log_likelihood.detach()[present].exp())
    assert (result.reward[~present] == 0).all()


@pytest.mark.parametrize("name", PAIRED)
def test_a_ragged_batch_equals_its_prompts_one_by_one(name):
    log_likelihood, scores, present = ragged(2)
    log_likelihood.requires_grad_()
    together = PAIRED[name](log_likelihood, scores, present)
    together.loss.sum().backward()
    for row, keep in enumerate(present):
        single = log_likelihood.detach()[row, keep][None].requires_grad_()
        alone = PAIRED[name](single, scores[row, keep][None], present[row, keep][None])
        alone.loss.sum().backward()
        torch.testing.assert_close(alone.loss[0], together.loss[row])
        torch.testing.assert_close(single.grad[0], log_likelihood.grad[row, keep])


@pytest.mark.parametrize("name", PAIRED)
def test_gradients_match_finite_differences(name):
    log_likelihood, scores, present = one([0.6, 0.5, 0.3, 0.1], [2.0, 9.0, NAN, 4.0])
    for temperature in (1.0, 2.5):

        def loss(means, temperature=temperature):
            return PAIRED[name](means, scores, present, temperature=temperature).loss

        assert torch.autograd.gradcheck(loss, log_likelihood)


@pytest.mark.parametrize("loss", [functional.point_ce, functional.point_mse])
@pytest.mark.parametrize("mean", [0.0, -1e-9, -1.0, -1e3])
def test_points_are_finite_at_certainty_and_impossibility(loss, mean):
    log_likelihood = torch.tensor([mean], requires_grad=True)
    result = loss(log_likelihood, torch.tensor([0.1]))
    result.loss.sum().backward()
    assert result.loss.isfinite().all()
    assert log_likelihood.grad.isfinite().all()


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("means", [[0.0, 0.0, 0.0], [-1e3, 0.0, -1e3], [-1e3, -1e3, -1e3]])
def test_pairs_are_finite_at_certainty_and_impossibility(name, means):
    log_likelihood = torch.tensor([means], requires_grad=True)
    result = PAIRED[name](log_likelihood, torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
    result.loss.sum().backward()
    assert result.loss.isfinite().all()
    assert log_likelihood.grad.isfinite().all()

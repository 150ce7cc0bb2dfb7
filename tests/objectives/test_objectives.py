"""Objectives on whole batches: ragged rows, ties, unknown scores, masks and settings."""

from __future__ import annotations

import math

import pytest
import torch

from pl_prefopt import functional, objectives
from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives import DPO, DPOP, FDPO, IPO, KTO, ORPO, Hinge, RobustDPO, SimPO
from pl_prefopt.pairing import BestAgainstEach, BestAgainstWorst
from pl_prefopt.views import Mismatched
from tests.objectives.batches import NAN, make_batch, make_view

PAIRWISE = {
    "dpo": DPO(),
    "cdpo": DPO(label_smoothing=0.1),
    "dpo_best_worst": DPO(pairing=BestAgainstWorst()),
    "dpo_best_each": DPO(pairing=BestAgainstEach()),
    "ipo": IPO(),
    "ipo_mean": IPO(normalize="mean"),
    "hinge": Hinge(),
    "robust": RobustDPO(flip_rate=0.2),
    "dpop": DPOP(),
    "f_reverse": FDPO(),
    "f_forward": FDPO(divergence=objectives.ForwardKL()),
    "f_js": FDPO(divergence=objectives.JensenShannon()),
    "f_alpha": FDPO(divergence=objectives.AlphaDivergence(alpha=0.5)),
    "simpo": SimPO(),
    "orpo": ORPO(),
}
EVERY = {**PAIRWISE, "kto": KTO()}


def softplus(x):
    return math.log1p(math.exp(x))


# --- by hand


def test_dpo_averages_over_the_pairs_of_each_prompt():
    # Log-ratios 2, −1, 0 with scores 3, 1, 2: pairs (0,1) h = 3, (0,2) h = 2, (2,1) h = 1; β = 1.
    # Second row: scores tie, so nothing is counted.
    batch = make_batch(
        [[-8.0, -11.0, -10.0], [-5.0, -6.0, -7.0]],
        [[-10.0, -10.0, -10.0], [-5.0, -5.0, -5.0]],
        [[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]],
    )
    outcome = DPO(beta=1.0)(batch)
    expected = (softplus(-3) + softplus(-2) + softplus(-1)) / 3
    assert outcome.loss.tolist() == pytest.approx([expected, 0.0], rel=1e-6)
    assert outcome.counted.tolist() == [True, False]
    torch.testing.assert_close(outcome.reward, torch.tensor([[2.0, -1.0, 0.0], [0.0, -1.0, -2.0]]))
    outcome.loss.sum().backward()
    assert batch.policy.sum.grad[1].tolist() == [0.0, 0.0, 0.0]


def test_ipo_mean_divides_both_models_by_the_policys_length():
    # Averages: chosen −8/4 = −2 and −12/4 = −3, a = 1; rejected −3/2 and −2/2, a = −0.5; h = 1.5,
    # target 1/(2·0.5) = 1: loss 0.25. With sums: a = 4 and −1, h = 5, loss 16.
    batch = make_batch([[-8.0, -3.0]], [[-12.0, -2.0]], [[1.0, 0.0]], length=[[4, 2]])
    assert IPO(beta=0.5, normalize="mean")(batch).loss.item() == pytest.approx(0.25)
    assert IPO(beta=0.5, normalize="mean")(batch).reward.tolist() == [[0.5, -0.25]]
    assert IPO(beta=0.5)(batch).loss.item() == pytest.approx(16.0)


@pytest.mark.parametrize("objective", [SimPO(beta=2.0, gamma=0.5), ORPO(weight=0.3)])
def test_reference_free_objectives_compare_averages(objective):
    # −6/3 = −2 and −3/2 = −1.5
    batch = make_batch([[-6.0, -3.0]], None, [[1.0, 0.0]], length=[[3, 2]])
    chosen, rejected = torch.tensor(-2.0), torch.tensor(-1.5)
    if isinstance(objective, SimPO):
        expected = functional.simpo(chosen, rejected, beta=2.0, gamma=0.5)
    else:
        expected = functional.orpo(chosen, rejected, weight=0.3)
    outcome = objective(batch)
    assert outcome.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    torch.testing.assert_close(outcome.reward, torch.stack([*expected[1:]])[None])


def test_reference_free_objectives_ignore_references():
    numbers = ([[-6.0, -3.0]], [[1.0, 0.0]])
    free = make_batch(numbers[0], None, numbers[1])
    watched = make_batch(numbers[0], [[-1.0, -9.0]], numbers[1])
    for objective in (SimPO(), ORPO()):
        assert torch.equal(objective(free).loss, objective(watched).loss)


def test_orpo_over_several_pairs_averages_the_winners_likelihoods():
    # Scores 2, 1, 0: winners are response 0 twice and response 1 once; weight 0 leaves −ℓ̄ alone.
    batch = make_batch([[-4.0, -8.0, -12.0]], None, [[2.0, 1.0, 0.0]])
    assert ORPO(weight=0.0)(batch).loss.item() == pytest.approx((1 + 1 + 2) / 3)


def test_kto_by_hand():
    # z = max(0, mean(−3 + 4, −5 + 4.5)) = 0.25, β = 1. Row 0: a = 1, desirable, and a = −2, not; row 1:
    # a = 0.5, score unknown, and a = −1, at the threshold and so not desirable.
    view = make_view([[-3.0], [-5.0]], [[-4.0], [-4.5]])
    batch = make_batch(
        [[-4.0, -7.0], [-4.5, -6.0]],
        [[-5.0, -5.0], [-5.0, -5.0]],
        [[1.0, 0.0], [NAN, 0.5]],
        views={"mismatched": view},
    )
    outcome = KTO(beta=1.0, desirable_weight=2.0, undesirable_weight=3.0)(batch)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    desirable, undesirable = 2 * sigmoid(0.25 - 1), 3 * sigmoid(-2 - 0.25)
    assert outcome.stats["kl"].item() == pytest.approx(0.25)
    assert outcome.loss.tolist() == pytest.approx(
        [(desirable + undesirable) / 2, 3 * sigmoid(-1.25)], rel=1e-6
    )
    torch.testing.assert_close(outcome.reward, torch.tensor([[1.0, -2.0], [0.5, -1.0]]))
    outcome.loss.sum().backward()
    assert batch.policy.sum.grad[1, 0] == 0


def test_kto_reference_point_is_clamped_and_skips_absent_responses():
    below = make_view([[-9.0]], [[-4.0]])
    batch = make_batch([[-4.0]], [[-5.0]], [[1.0]], views={"mismatched": below})
    assert KTO()(batch).stats["kl"].item() == 0
    padded = make_view([[-3.0, 50.0]], [[-5.0, 0.0]], [[True, False]])
    batch = make_batch([[-4.0]], [[-5.0]], [[1.0]], views={"mismatched": padded})
    assert KTO()(batch).stats["kl"].item() == pytest.approx(2.0)
    nothing = make_view([[NAN]], [[0.0]], [[False]])
    batch = make_batch([[-4.0]], [[-5.0]], [[1.0]], views={"mismatched": nothing})
    assert KTO()(batch).stats["kl"].item() == 0


def test_kto_reference_point_carries_no_gradient():
    view = make_view([[-3.0]], [[-5.0]])
    view.policy.sum.requires_grad_()
    batch = make_batch([[-4.0]], [[-5.0]], [[1.0]], views={"mismatched": view})
    outcome = KTO()(batch)
    outcome.loss.sum().backward()
    assert not outcome.stats["kl"].requires_grad
    assert view.policy.sum.grad is None


def test_kto_threshold():
    view = make_view([[-3.0]], [[-3.0]])
    batch = make_batch([[-4.0]], [[-5.0]], [[7.0]], views={"mismatched": view})
    high, low = KTO(desirable_above=8.0)(batch).loss, KTO(desirable_above=6.0)(batch).loss
    assert (high + low).item() == pytest.approx(1.0)
    assert high > low


# --- all of them


@pytest.mark.parametrize("name", PAIRWISE)
def test_responses_of_unknown_score_get_a_reward_and_no_gradient(name):
    batch = make_batch([[-3.0, -4.0, -5.0]], [[-4.0, -4.0, -7.0]], [[1.0, 0.0, NAN]])
    outcome = PAIRWISE[name](batch)
    outcome.loss.sum().backward()
    assert batch.policy.sum.grad[0, 2] == 0
    assert outcome.reward[0, 2] != 0


def test_pairings_change_which_responses_learn():
    batch = make_batch([[-3.0, -4.0, -5.0]], [[-3.5, -4.0, -5.0]], [[3.0, 2.0, 1.0]])
    DPO(pairing=BestAgainstWorst())(batch).loss.sum().backward()
    assert (batch.policy.sum.grad != 0).tolist() == [[True, False, True]]


@pytest.mark.parametrize("name", EVERY)
def test_a_step_of_gradient_descent_lifts_the_better_response_over_the_worse(name):
    # DPOP weighs the chosen response's own fall far more than the pair's, hence the rise to begin with.
    batch = make_batch(
        [[-3.0, -3.2]],
        [[-3.5, -3.2]],
        [[1.0, 0.0]],
        views={"mismatched": make_view([[-1.0]], [[-1.0]])},
    )
    EVERY[name](batch).loss.sum().backward()
    better, worse = (-batch.policy.sum.grad[0]).tolist()
    assert better > 0 > worse


# --- needs and settings


def test_needs():
    assert DPO().needs == objectives.Needs(min_references=1, max_references=1, min_responses=2)
    assert SimPO().needs == objectives.Needs(min_responses=2)
    kto = KTO().needs
    assert (kto.min_references, kto.max_references, kto.min_responses) == (1, 1, 1)
    assert isinstance(kto.views["mismatched"], Mismatched)


@pytest.mark.parametrize("name", EVERY)
def test_families(name):
    free = name in ("simpo", "orpo")
    assert isinstance(EVERY[name], objectives.ReferenceFreeObjective) == free
    assert isinstance(EVERY[name], objectives.ReferenceObjective) != free


def test_an_objective_must_state_its_needs():
    class Forgetful(objectives.Objective):
        def forward(self, batch):
            raise NotImplementedError

    with pytest.raises(TypeError, match="needs"):
        Forgetful()


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (lambda: DPO(beta=0.0), "beta"),
        (lambda: DPO(beta=NAN), "beta"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: DPO(label_smoothing=-0.1), "label_smoothing"),
        (lambda: IPO(beta=-1.0), "beta"),
        (lambda: IPO(normalize="median"), "normalize"),
        (lambda: Hinge(beta=0.0), "beta"),
        (lambda: RobustDPO(flip_rate=0.5), "flip_rate"),
        (lambda: RobustDPO(beta=0.0), "beta"),
        (lambda: DPOP(penalty=-1.0), "penalty"),
        (lambda: DPOP(beta=0.0), "beta"),
        (lambda: FDPO(beta=0.0), "beta"),
        (lambda: objectives.AlphaDivergence(alpha=1.0), "alpha"),
        (lambda: objectives.AlphaDivergence(alpha=0.0), "alpha"),
        (lambda: KTO(beta=0.0), "beta"),
        (lambda: KTO(desirable_weight=-1.0), "desirable_weight"),
        (lambda: KTO(undesirable_weight=NAN), "undesirable_weight"),
        (lambda: SimPO(beta=0.0), "beta"),
        (lambda: SimPO(gamma=-0.1), "gamma"),
        (lambda: ORPO(weight=-0.1), "weight"),
    ],
)
def test_settings_out_of_range_name_themselves_in_one_sentence(build, setting):
    with pytest.raises(ConfigError) as caught:
        build()
    message = str(caught.value)
    assert message.startswith(setting)
    assert message.endswith(".")
    assert "\n" not in message

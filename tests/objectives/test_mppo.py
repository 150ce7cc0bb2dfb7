"""MPPO's objectives on whole batches: shapes, scales, draws, settings, and their pages."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
import yaml

from pl_prefopt import objectives
from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives import (
    ListMLE,
    Needs,
    PairMCM,
    PairMCS,
    PairMNM,
    PairMNS,
    PairSingle,
    PointCE,
    PointMSE,
)
from pl_prefopt.objectives.mppo import sample
from pl_prefopt.pairing import below_best
from tests.objectives.batches import NAN, make_batch, random_batch
from tests.objectives.test_method_configs import build, load

PAIRED = {
    "pair_single": PairSingle().eval(),
    "pair_mns": PairMNS(),
    "pair_mnm": PairMNM(),
    "pair_mcs": PairMCS(),
    "pair_mcm": PairMCM(),
    "list_mle": ListMLE(),
}
POINT = {"point_ce": PointCE(score_range=(0.0, 4.0)), "point_mse": PointMSE(score_range=(0.0, 4.0))}
EVERY = PAIRED | POINT


def softplus(x):
    return math.log1p(math.exp(x))


def one(p, scores, length=4):
    """A batch of one prompt whose responses have these mean likelihoods."""
    return make_batch([[length * math.log(each) for each in p]], None, [scores])


# --- by hand


def test_sums_are_divided_by_lengths():
    # exp(−2/4) and exp(−6/3)
    batch = make_batch([[-2.0, -6.0]], None, [[1.0, 0.0]], length=[[4, 3]])
    outcome = PairMNM()(batch)
    p = [math.exp(-0.5), math.exp(-2.0)]
    assert outcome.reward[0].tolist() == pytest.approx(p)
    assert outcome.loss.item() == pytest.approx(softplus(p[1] - p[0]))


@pytest.mark.parametrize("repeats", [1, 3])
def test_p_does_not_change_when_a_response_is_repeated(repeats):
    batch = make_batch([[-2.0 * repeats, -3.0]], None, [[1.0, 0.0]], length=[[4 * repeats, 4]])
    assert PairMNM()(batch).reward[0, 0].item() == pytest.approx(math.exp(-0.5))


def test_points_average_over_the_responses_of_a_prompt():
    # Scores 10, 1 and unknown become 1, 0.1 and nothing; p = 0.5, 0.5, 0.9.
    batch = one([0.5, 0.5, 0.9], [10.0, 1.0, NAN])
    cross_entropy = (math.log(2) + math.log(2)) / 2
    assert PointCE()(batch).loss.item() == pytest.approx(cross_entropy, rel=1e-6)
    assert PointMSE()(batch).loss.item() == pytest.approx((0.25 + 0.16) / 2, rel=1e-6)
    assert PointMSE()(batch).reward[0].tolist() == pytest.approx([0.5, 0.5, 0.9])


@pytest.mark.parametrize(
    ("score_range", "scores"),
    [((1.0, 10.0), [1.0, 5.5, 10.0]), ((0.0, 1.0), [0.0, 0.5, 1.0]), ((-3.0, 5.0), [-3.0, 1.0, 5.0])],
)
def test_any_scale_becomes_the_papers(score_range, scores):
    scaled = PointCE(score_range=score_range).scaled(torch.tensor(scores))
    assert scaled.tolist() == pytest.approx([0.1, 0.55, 1.0])


@pytest.mark.parametrize("score_range", [(1.0, 10.0), (0.1, 0.7), (-0.3, 1 / 3), (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_scale_are_a_tenth_and_one_exactly(score_range, dtype):
    scaled = PointCE(score_range=score_range).scaled(torch.tensor(score_range, dtype=dtype))
    assert torch.equal(scaled, torch.tensor([0.1, 1.0], dtype=dtype))


def test_the_highest_score_pushes_up_at_any_likelihood():
    # −ℓ̄ with its gradient −1, also where p rounds to 1.
    batch = make_batch([[-1e-7, -1e-10, 0.0, -4.0]], None, [[10.0] * 4], length=[[1, 1, 1, 1]])
    PointCE()(batch).loss.sum().backward()
    assert batch.policy.sum.grad[0].tolist() == [-0.25] * 4


def test_the_papers_own_scale_is_divided_by_ten():
    grades = torch.arange(1.0, 11.0)
    torch.testing.assert_close(PointMSE().scaled(grades), grades / 10)


def test_a_single_response_has_a_point_loss_and_no_pair():
    batch = make_batch([[-4.0]], None, [[10.0]])
    assert PointCE()(batch).loss.item() == pytest.approx(1.0)
    assert PointCE()(batch).counted.tolist() == [True]
    assert PairMNM()(batch).counted.tolist() == [False]


@pytest.mark.parametrize("name", EVERY)
def test_temperature_is_passed_on(name):
    settings = {"score_range": (0.0, 4.0)} if name in POINT else {}
    objective = type(EVERY[name])(temperature=2.0, **settings).eval()
    cold, warm = one([0.25, 0.09], [4.0, 2.0]), one([0.5, 0.3], [4.0, 2.0])
    assert objective(cold).loss.item() == pytest.approx(EVERY[name](warm).loss.item(), rel=1e-5)
    torch.testing.assert_close(objective(cold).reward, EVERY[name](warm).reward)


# --- all of them


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_without_anything_to_learn_still_has_a_gradient_of_zero(name):
    batch = make_batch([[-3.0, -4.0], [0.0, 0.0]], None, [[NAN, NAN], [NAN, NAN]])
    outcome = EVERY[name](batch)
    outcome.loss.sum().backward()
    assert outcome.loss.tolist() == [0.0, 0.0]
    assert not outcome.counted.any()
    assert (batch.policy.sum.grad == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_responses_of_unknown_score_get_a_reward_and_no_gradient(name):
    batch = make_batch([[-3.0, -4.0, -5.0]], None, [[1.0, 0.0, NAN]])
    outcome = EVERY[name](batch)
    outcome.loss.sum().backward()
    assert batch.policy.sum.grad[0, 2] == 0
    assert outcome.reward[0, 2] > 0


@pytest.mark.parametrize("name", EVERY)
def test_references_are_ignored(name):
    free, watched = random_batch(6), random_batch(6)
    watched.references.fill_(-1.0)
    assert torch.equal(EVERY[name](free).loss, EVERY[name](watched).loss)


# --- sampling


def test_pair_single_draws_in_training_and_averages_in_evaluation():
    p, scores = [0.8, 0.5, 0.1], [3.0, 2.0, 1.0]
    torch.manual_seed(0)
    objective = PairSingle()
    drawn = {round(objective(one(p, scores)).loss.item(), 4) for _ in range(30)}
    assert drawn == {round(softplus(-0.3), 4), round(softplus(-0.7), 4)}
    mean = (softplus(-0.3) + softplus(-0.7)) / 2
    assert objective.eval()(one(p, scores)).loss.item() == pytest.approx(mean, rel=1e-6)


def test_pair_single_draws_every_response_below_the_best_equally_often_and_no_other():
    torch.manual_seed(0)
    scores = torch.tensor([[2.0, 5.0, 5.0, 1.0, NAN, 3.0]]).expand(3000, -1)
    present = torch.tensor([True, True, True, True, True, False]).expand(3000, -1)
    counts = sample(below_best(scores, present), 1).sum(dim=0).tolist()
    assert counts[1] == counts[2] == counts[4] == counts[5] == 0
    assert counts[0] + counts[3] == 3000
    assert abs(counts[0] - 1500) < 150


@pytest.mark.parametrize("kind", [PairMCS, PairMCM])
def test_num_pairs_draws_that_many_pairs_in_training(kind):
    p, scores = [0.8, 0.5, 0.1], [3.0, 2.0, 1.0]
    margins = {"01": 0.3, "02": 0.7, "12": 0.4}
    torch.manual_seed(0)
    objective = kind(num_pairs=2)
    drawn = {round(objective(one(p, scores)).loss.item(), 4) for _ in range(40)}
    if kind is PairMCS:
        expected = {
            round(softplus(-margins[a]) + softplus(-margins[b]), 4)
            for a, b in (("01", "02"), ("01", "12"), ("02", "12"))
        }
    else:
        expected = {round(softplus(-total), 4) for total in (1.0, 0.7, 1.1)}
    assert drawn == expected
    everything = kind()(one(p, scores)).loss
    assert torch.equal(objective.eval()(one(p, scores)).loss, everything)
    assert torch.equal(kind(num_pairs=3)(one(p, scores)).loss, everything)
    assert torch.equal(kind(num_pairs=99)(one(p, scores)).loss, everything)


def test_samples_follow_the_seed():
    candidates = torch.ones(20, 6, dtype=torch.bool)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(sample(candidates, 2))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert (found[0].sum(dim=-1) == 2).all()


# --- needs, settings, configurations, pages


def test_needs():
    assert PairMNM().needs == Needs(min_responses=2)
    assert PointCE(score_range=(0.0, 5.0)).needs == Needs(score_range=(0.0, 5.0))


@pytest.mark.parametrize("name", EVERY)
def test_the_family_is_its_own(name):
    assert isinstance(EVERY[name], objectives.MPPOObjective)
    assert not isinstance(EVERY[name], (objectives.ReferenceFreeObjective, objectives.ReferenceObjective))


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: PairMNM(temperature=0.0), "temperature"),
        (lambda: PointCE(temperature=-1.0), "temperature"),
        (lambda: PointCE(score_range=(1.0, 1.0)), "score_range"),
        (lambda: PointMSE(score_range=(10.0, 1.0)), "score_range"),
        (lambda: PointMSE(score_range=(NAN, 1.0)), "score_range"),
        (lambda: PairMCS(num_pairs=0), "num_pairs"),
        (lambda: PairMCM(num_pairs=-1), "num_pairs"),
    ],
)
def test_settings_out_of_range_name_themselves_in_one_sentence(make, setting):
    with pytest.raises(ConfigError) as caught:
        make()
    message = str(caught.value)
    assert message.startswith(setting)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("name", EVERY)
def test_each_variant_has_a_configuration_with_the_papers_settings(name):
    built, config = build(load(f"mppo_{name}")), load(f"mppo_{name}")
    assert type(built) is type(EVERY[name])
    assert built.temperature == 1.0
    assert config["model"]["class_path"] == "pl_prefopt.modules.MPPOModule"
    assert config["references"]["members"] == []
    assert getattr(built, "score_range", (1.0, 10.0)) == (1.0, 10.0)
    assert getattr(built, "num_pairs", None) is None


def test_the_page_names_only_classes_and_settings_that_exist():
    page = Path(__file__).parents[2] / "docs" / "methods" / "mppo.md"
    blocks = page.read_text(encoding="utf-8").split("```yaml\n")[1:]
    assert blocks
    for block in map(yaml.safe_load, (block.split("```")[0] for block in blocks)):
        objective = block["model"]["init_args"]["objective"]
        assert set(objective["init_args"]) == set(inspect.signature(type(build(block))).parameters)

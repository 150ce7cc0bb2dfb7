"""Closed forms of the reward models' losses, with gradients; TRL's trainer is in tests/oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.objectives import (
    DPO,
    BradleyTerry,
    ColumnMargin,
    Compose,
    HeadReward,
    LengthDesensitized,
    LogRatio,
    MarginBradleyTerry,
    Needs,
    NegativeLogLikelihood,
    RewardClassification,
    RewardPlackettLuce,
    RewardRegression,
    ScaledBradleyTerry,
    ScoreGap,
    Sum,
)
from pl_prefopt.objectives.examples import rewarded
from pl_prefopt.rows import Message, PreferenceRow

NAN = float("nan")


def loss_and_slope(objective, rewards, **settings):
    """The loss of one prompt and its gradient at the rewards."""
    import dataclasses

    leaf = torch.tensor([rewards], dtype=torch.float64).unsqueeze(-1).requires_grad_()
    batch = dataclasses.replace(rewarded(rewards, **settings), outputs={"reward": leaf})
    outcome = objective(batch)
    (slope,) = torch.autograd.grad(outcome.loss.sum(), leaf)
    assert torch.equal(outcome.reward, leaf.detach().squeeze(-1))
    return outcome.loss.item(), slope.flatten().tolist()


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.7, 5.0])
def test_bradley_terry_depends_on_the_difference_alone(gap):
    loss, slope = loss_and_slope(BradleyTerry(), [gap + 2, 2.0])
    assert loss == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-12)
    assert slope == pytest.approx([-sigmoid(-gap), sigmoid(-gap)], rel=1e-12)
    assert loss_and_slope(BradleyTerry(), [gap - 7, -7.0])[1] == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("gap", [-2.0, 0.5])
@pytest.mark.parametrize("by", [0.0, 1.0, 3.0])
def test_margins_and_scales_against_bradley_terry(gap, by):
    plain, slope = loss_and_slope(BradleyTerry(), [gap, 0.0])
    column = {"m": torch.tensor([by])}
    margin, at_margin = loss_and_slope(
        MarginBradleyTerry(margin=ColumnMargin("m")), [gap, 0.0], columns=column
    )
    scaled, at_scaled = loss_and_slope(ScaledBradleyTerry(column="m"), [gap, 0.0], columns=column)
    graded, _ = loss_and_slope(MarginBradleyTerry(margin=ScoreGap(by or 1e-12)), [gap, 0.0])
    assert margin == pytest.approx(math.log1p(math.exp(by - gap)), rel=1e-12)
    assert graded == pytest.approx(margin, rel=1e-6)
    assert scaled == pytest.approx(by * plain, rel=1e-12)
    assert at_scaled == pytest.approx([by * one for one in slope], rel=1e-12)
    # A margin's gradient is never below that without.
    assert at_margin == pytest.approx([-sigmoid(by - gap), sigmoid(by - gap)], rel=1e-12)
    assert at_margin[1] >= slope[1]


def test_smoothed_labels_have_their_optimum_at_logit_of_the_share():
    best = math.log(0.9 / 0.1)
    _, slope = loss_and_slope(BradleyTerry(label_smoothing=0.1), [best, 0.0])
    assert slope == pytest.approx([0.0, 0.0], abs=1e-12)


def test_centring_breaks_the_invariance_to_shifts():
    for objective in (BradleyTerry(centring=0.3), MarginBradleyTerry(margin=ScoreGap(0.5), centring=0.3)):
        _, slope = loss_and_slope(objective, [1.5, 0.5])
        assert sum(slope) == pytest.approx(4 * 0.3 * 2.0, rel=1e-12)
    assert loss_and_slope(BradleyTerry(centring=0.3), [1.0, -1.0]) == loss_and_slope(
        BradleyTerry(), [1.0, -1.0]
    )


def test_plackett_luce_is_the_likelihood_of_the_order():
    rewards = [0.3, -1.0, 2.0]
    loss, _ = loss_and_slope(RewardPlackettLuce(), rewards, scores=[2.0, 1.0, 3.0])
    e = [math.exp(one) for one in rewards]
    expected = -math.log(e[2] / sum(e)) - math.log(e[0] / (e[0] + e[1]))
    assert loss == pytest.approx(expected, rel=1e-12)
    pair = [1.3, 0.2]
    assert loss_and_slope(RewardPlackettLuce(), pair) == loss_and_slope(BradleyTerry(), pair)
    centred = loss_and_slope(RewardPlackettLuce(centring=0.1), pair)[0]
    assert centred == pytest.approx(loss_and_slope(BradleyTerry(centring=0.1), pair)[0], rel=1e-12)


def test_pointwise_losses_are_those_of_torch_over_known_scores():
    rewards, scores = [0.3, -1.0, 2.0, 7.0], [2.0, 0.0, 3.0, NAN]
    at, wanted = torch.tensor(rewards[:3], dtype=torch.float64), torch.tensor(scores[:3], dtype=torch.float64)
    loss, slope = loss_and_slope(RewardRegression(), rewards, scores=scores)
    assert loss == pytest.approx(mse_loss(at, wanted).item(), rel=1e-12)
    assert slope == pytest.approx([*(2 * (at - wanted) / 3).tolist(), 0.0], rel=1e-12)
    loss, slope = loss_and_slope(RewardClassification(), rewards, scores=scores)
    labels = (wanted > 0.5).double()
    assert loss == pytest.approx(binary_cross_entropy_with_logits(at, labels).item(), rel=1e-12)
    assert slope == pytest.approx([*((at.sigmoid() - labels) / 3).tolist(), 0.0], rel=1e-12)


@pytest.mark.parametrize(
    "objective",
    [BradleyTerry(label_smoothing=0.1), RewardPlackettLuce(), RewardRegression(), RewardClassification()],
    ids=lambda objective: type(objective).__name__,
)
def test_extreme_rewards_give_finite_numbers(objective):
    for rewards in ([1e4, -1e4], [-1e4, 1e4], [1e3, 1e3]):
        leaf = torch.tensor([rewards]).unsqueeze(-1).requires_grad_()
        batch = rewarded(rewards)
        batch.outputs["reward"] = leaf  # type: ignore[index]
        loss = objective(batch).loss
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        assert loss.isfinite().all()
        assert slope.isfinite().all()


def test_needs_of_parts_decide_whether_log_probs_are_read():
    assert not BradleyTerry().needs.log_probs
    assert not Compose(score=HeadReward(), offsets=[ScoreGap(1.0)]).needs.log_probs
    assert Compose(score=HeadReward(), terms=[NegativeLogLikelihood()]).needs.log_probs
    assert DPO().needs.log_probs
    assert DPO().needs.reward_outputs is None
    assert Sum(parts={"a": BradleyTerry(), "b": RewardRegression()}).needs.reward_outputs == 1
    assert Needs.of_all(Needs(reward_outputs=0), Needs(reward_outputs=3)).reward_outputs == 3
    with pytest.raises(ConfigError, match="need reward heads of 1 and 3 outputs"):
        Needs.of_all(Needs(reward_outputs=1), Needs(reward_outputs=3))
    with pytest.raises(ConfigError, match="HeadReward reads no log-probs"):
        LengthDesensitized(HeadReward(), 0.5)
    assert LengthDesensitized(LogRatio(), 0.5).needs.log_probs


def test_rows_without_what_is_learned_from_are_refused():
    def row(scores, graded=False):
        turns = tuple((Message("assistant", str(score)),) for score in scores)
        return PreferenceRow(prompt=(Message("user", "?"),), responses=turns, scores=scores, graded=graded)

    with pytest.raises(ContractError, match="ScoreGap learns from differences of scores"):
        MarginBradleyTerry(margin=ScoreGap(1.0)).check_training_rows([row((1.0, 0.0))])
    with pytest.raises(ContractError, match="RewardClassification"):
        RewardClassification().check_training_rows([row((1.0, 1.0))])

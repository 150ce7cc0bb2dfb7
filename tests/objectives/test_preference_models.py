"""Embeddings, mixtures, doubtful labels, rationales and attributes against their closed forms, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import logsigmoid

from pl_prefopt import functional
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.functional import embeddings, router_mixtures
from pl_prefopt.objectives import (
    GPM,
    AttributeRegression,
    BradleyTerry,
    CombinedReward,
    Compose,
    RewardMixture,
    StrengthBradleyTerry,
)
from pl_prefopt.objectives.examples import embedded, rewarded
from pl_prefopt.requests import REWARD
from pl_prefopt.rewards import Minimum

DOUBLE = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def batch_of(outputs, scores, columns=None):
    """A batch of one prompt per row of ``outputs`` [B, R, J]."""
    one = embedded([[0.0]] * outputs.shape[1], scores=[0.0] * outputs.shape[1])
    count = len(outputs)
    return dataclasses.replace(
        one,
        outputs={REWARD: outputs},
        scores=torch.as_tensor(scores),
        present=torch.ones(outputs.shape[:2], dtype=torch.bool),
        graded=torch.ones(count, dtype=torch.bool),
        policy=dataclasses.replace(one.policy, sum=one.policy.sum.expand(count, -1)),
        columns=columns or {},
    )


def gradient(loss, at):
    (slope,) = torch.autograd.grad(loss, at)
    return slope


def test_a_form_is_antisymmetric_ties_with_itself_and_has_its_gradient():
    first, second = drawn(5, 6).requires_grad_(), drawn(5, 6, seed=1)
    score = functional.skew_score(first, second)
    torch.testing.assert_close(score, -functional.skew_score(second, first))
    assert functional.skew_score(first, first).abs().max() < 1e-15
    grid = functional.skew_scores(torch.cat([first, second]))
    torch.testing.assert_close(grid[:5, 5:].diagonal(), score)
    turned = torch.stack([second[:, 1::2], -second[:, 0::2]], dim=-1).flatten(1)  # Rᵀ v_j
    torch.testing.assert_close(gradient(score.sum(), first), turned)
    assert turned.norm(dim=1).allclose(second.norm(dim=1))  # ‖Rv‖ = ‖v‖
    rotation = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE)] * 3)
    torch.testing.assert_close((first @ rotation.T * second).sum(1), score)


def test_gates_weigh_blocks():
    first, second, log_gates = drawn(4, 6), drawn(4, 6, seed=1), drawn(4, 3, seed=2)
    gated = functional.skew_score(
        embeddings.gate_blocks(first, log_gates), embeddings.gate_blocks(second, log_gates)
    )
    blocks = torch.stack(
        [functional.skew_score(first[:, i : i + 2], second[:, i : i + 2]) for i in (0, 2, 4)], dim=1
    )
    torch.testing.assert_close(gated, (log_gates.exp() * blocks).sum(dim=1))


def test_embeddings_r_and_one_are_bradley_terry():
    rewards, scores = drawn(3, 4), torch.arange(12.0).view(3, 4)
    outputs = torch.stack([rewards, torch.ones_like(rewards)], dim=-1)
    found = GPM(temperature=1.0)(batch_of(outputs, scores))
    expected = BradleyTerry()(batch_of(rewards.unsqueeze(-1), scores))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.reward, rewards - rewards.mean(dim=1, keepdim=True))


CYCLE = torch.tensor([[0, 1], [1, 2], [2, 0]])
"""Each of three responses beats the next."""


def fitted(parameter, margins, steps=300):
    """Minimise Bradley-Terry's loss of ``margins(parameter)`` and return the final margins."""
    search = torch.optim.LBFGS([parameter], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = -logsigmoid(margins(parameter) / 0.1).mean()
        value.backward()
        return value

    search.step(loss)
    return margins(parameter).detach()


def test_embeddings_represent_a_cycle_that_rewards_cannot():
    def of_embeddings(raw):
        unit = embeddings.unit_norm(raw)
        return functional.skew_score(unit[CYCLE[:, 0]], unit[CYCLE[:, 1]])

    def of_rewards(rewards):
        return rewards[CYCLE[:, 0]] - rewards[CYCLE[:, 1]]

    found = fitted(drawn(3, 2).requires_grad_(), of_embeddings)
    assert found.allclose(torch.full_like(found, 0.75**0.5), atol=1e-3)  # 120 degrees
    rewards = fitted(drawn(3).requires_grad_(), of_rewards)
    assert rewards.sum().abs() < 1e-12, "margins around a cycle of rewards add up to 0"
    assert (rewards > 1e-6).sum() < 3


def test_a_head_with_an_odd_number_of_outputs_is_refused():
    with pytest.raises(ContractError, match=r"EmbeddingScore reads an even number .*, but the head has 1: "):
        GPM()(rewarded([1.0, 0.0]))


def test_a_mixture_has_the_gradient_of_its_responsibilities():
    logits, margins = drawn(6, 3).requires_grad_(), drawn(6, 3, seed=1).requires_grad_()
    log_weights = logits.log_softmax(dim=-1)
    loss = functional.mixture_nll(log_weights, margins)
    share = router_mixtures.responsibilities(log_weights, margins).detach()
    of_margins, of_logits = torch.autograd.grad(loss.sum(), [margins, logits])
    torch.testing.assert_close(of_margins, -share * torch.sigmoid(-margins))
    torch.testing.assert_close(of_logits, log_weights.exp() - share)
    jensen = (log_weights.exp() * -logsigmoid(margins)).sum(dim=-1)
    assert (loss <= jensen + 1e-12).all()
    both = router_mixtures.mixture_probability(log_weights, margins)
    torch.testing.assert_close(both, (-loss).exp())
    torch.testing.assert_close(
        both + router_mixtures.mixture_probability(log_weights, -margins), both * 0 + 1
    )
    assert not functional.mixture_nll(log_weights, margins).allclose(
        -logsigmoid((log_weights.exp() * margins).sum(-1))
    ), "mixing rewards is another model"


def test_a_mixture_objective_is_its_likelihood_and_with_one_part_bradley_terry():
    rewards, logits = drawn(4, 2, 3), drawn(4, 1, 3, seed=1).expand(4, 2, 3)
    log_weights = logits.log_softmax(dim=-1)
    batch = batch_of(torch.cat([rewards, log_weights], dim=-1), torch.tensor([[1.0, 0.0]] * 4))
    outcome = RewardMixture(router_entropy=0.5)(batch)
    nll = functional.mixture_nll(log_weights[:, 0], rewards[:, 0] - rewards[:, 1])
    entropy = router_mixtures.negative_entropy(log_weights[:, 0])
    torch.testing.assert_close(outcome.loss, nll + 0.5 * entropy)
    assert (entropy >= -torch.log(torch.tensor(3.0)) - 1e-12).all()
    torch.testing.assert_close(torch.sigmoid(outcome.reward[:, 0] - outcome.reward[:, 1]), (-nll).exp())

    alone = torch.cat([rewards[..., :1], torch.zeros(4, 2, 1, dtype=DOUBLE)], dim=-1)
    torch.testing.assert_close(
        RewardMixture(router_entropy=0.0)(batch_of(alone, batch.scores)).loss,
        BradleyTerry()(batch_of(rewards[..., :1], batch.scores)).loss,
    )


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_extreme_rewards_have_finite_losses_and_gradients(size):
    outputs = torch.tensor([[[size, -size, -0.5, -1.0], [-size, size, -0.5, -1.0]]]).requires_grad_()
    scores = torch.tensor([[1.0, 0.0]])
    for objective in (RewardMixture(), GPM(temperature=1.0)):
        loss = objective(batch_of(outputs, scores)).loss
        assert loss.isfinite().all()
        assert gradient(loss.sum(), outputs).isfinite().all()


def test_hedge_is_bayes_for_a_step_of_one_and_keeps_weights_under_equal_losses():
    prior, margins = drawn(3).log_softmax(dim=0), drawn(5, 3, seed=1)
    posterior = prior.exp() * torch.sigmoid(margins).prod(dim=0)
    found = functional.hedge(prior, -logsigmoid(margins), step=1.0)
    torch.testing.assert_close(found.exp(), posterior / posterior.sum())
    torch.testing.assert_close(functional.hedge(prior, torch.full((5, 3), 0.7), step=2.0), prior)
    one_by_one = prior
    for losses in -logsigmoid(margins):
        one_by_one = functional.hedge(one_by_one, losses.unsqueeze(0), step=1.0)
    torch.testing.assert_close(one_by_one, found)


def test_strengths_flip_smooth_and_shift():
    margins, strength = drawn(6), torch.tensor([-1.0, -0.1, 0.0, 0.5, torch.nan, 2.0], dtype=DOUBLE)
    rewards = torch.stack([margins, torch.zeros_like(margins)], dim=1).unsqueeze(-1)
    batch = batch_of(rewards, torch.tensor([[1.0, 0.0]] * 6), {"strength": strength})
    found = StrengthBradleyTerry(flip_below=-0.5, label_smoothing=0.2)(batch).loss
    known = strength.nan_to_num()
    expected = functional.adaptive_margin(margins, known)
    expected[0] = functional.adaptive_margin(-margins[0], -known[0])
    expected[1] = 0.8 * expected[1] + 0.2 * functional.adaptive_margin(-margins[1], -known[1])
    torch.testing.assert_close(found, expected)

    plain = StrengthBradleyTerry(adaptive_margin=False, label_smoothing=0.2)(batch).loss
    torch.testing.assert_close(plain, functional.smoothed_where_doubtful(margins, known, label_smoothing=0.2))
    shifted = margins.clone().requires_grad_()
    slope = gradient(functional.adaptive_margin(shifted, known).sum(), shifted)
    torch.testing.assert_close(slope, -torch.sigmoid(known - margins))


def test_ratings_that_are_missing_teach_nothing():
    outputs = drawn(2, 2, 3).requires_grad_()
    ratings = drawn(2, 2, 3, seed=1)
    ratings[0, 0, 1] = ratings[1, 1] = torch.nan
    columns = {name: ratings[..., place] for place, name in enumerate("abc")}
    objective = AttributeRegression(attributes=["a", "b", "c"], reward={"a": 1.0, "c": -0.5})
    outcome = objective(batch_of(outputs, torch.zeros(2, 2), columns))
    slope = gradient(outcome.loss.sum(), outputs)
    squares = (outputs - ratings).square()
    expected = torch.stack([(squares[0, 0, [0, 2]].mean() + squares[0, 1].mean()) / 2, squares[1, 0].mean()])
    torch.testing.assert_close(outcome.loss, expected)
    assert (slope[ratings.isnan()] == 0).all()
    torch.testing.assert_close(outcome.reward, (outputs[..., 0] - 0.5 * outputs[..., 2]).detach())


def test_a_few_labelled_pairs_find_the_part_of_a_context():
    """Router weights are equal; the context's labels are those of the second of three parts."""
    rewards = drawn(40, 2, 3)
    margins = rewards[:, 0] - rewards[:, 1]
    margins = margins * margins[:, 1:2].sign()
    prior = torch.zeros(8, 3, dtype=DOUBLE).log_softmax(dim=-1)
    weights = functional.context_weights(prior, margins[:8], step=1.0)
    assert weights.argmax() == 1
    rest = margins[8:]
    judged, before = (router_mixtures.mixture_logit(each, rest) for each in (weights, prior[0]))
    assert (judged > 0).double().mean() > (before > 0).double().mean()


def test_combined_rewards_read_rewards_only():
    """The log-weights behind them must not be the minimum."""
    score = CombinedReward(Minimum(), rewards=2, outputs=4)
    outputs = torch.tensor([[[1.0, 3.0, -9.0, 0.0], [2.0, 0.5, -9.0, 0.0]]])
    outcome = Compose(score=score)(batch_of(outputs, torch.tensor([[1.0, 0.0]])))
    assert outcome.reward.tolist() == [[1.0, 0.5]]
    assert score.needs.reward_outputs == 4
    with pytest.raises(ConfigError, match="outputs must be at least 2, but is 1"):
        CombinedReward(Minimum(), rewards=2, outputs=1)

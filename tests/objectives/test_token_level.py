"""Token-level objectives and modifiers: closed forms, gradients included, and what they reduce to.

`tests/modules/test_token_level_runs.py` has the same numbers from whole vocabularies of a model.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import logsigmoid

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.objectives import (
    DPO,
    LDDPO,
    TDPO1,
    TDPO2,
    TGDPO,
    WPO,
    Compose,
    LengthDesensitized,
    LogRatio,
    LogRatioKL,
    MeanLogProb,
    MeanLogRatio,
    Needs,
    PlackettLuce,
    PolicyProbability,
    Refinement,
    SimPO,
    Squared,
    VirtualLogRatio,
)
from pl_prefopt.requests import TokenRequest
from pl_prefopt.scoring import divergence
from pl_prefopt.scoring.readouts import log_collisions
from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers

VOCABULARY, TOKENS = 7, 5
LENGTHS = torch.tensor([[5, 2, 0], [3, 3, 4]])
SCORES = torch.tensor([[2.0, 1.0, torch.nan], [1.0, 3.0, 2.0]])


@dataclasses.dataclass
class Model:
    """Whole vocabularies: logits of policy and references, [(K,) B, R, T, V], and the tokens taken."""

    policy: torch.Tensor
    references: torch.Tensor
    labels: torch.Tensor

    @property
    def counted(self):
        return torch.arange(TOKENS) < LENGTHS.unsqueeze(-1)

    def taken(self, logits):
        """Log-probs of the tokens taken."""
        labels = self.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        return torch.where(self.counted, logits.log_softmax(-1).gather(-1, labels).squeeze(-1), 0.0)

    @property
    def batch(self):
        """What an objective would be given."""
        policy, references = self.taken(self.policy), self.taken(self.references)
        own = self.policy.log_softmax(-1)
        kl = [divergence(own, one.log_softmax(-1), "forward") for one in self.references]
        with torch.no_grad():
            collisions = torch.where(self.counted, log_collisions(self.policy).squeeze(-1), 0.0)
        return ScoredBatch(
            policy=ResponseLogProbs(sum=policy.sum(-1), length=LENGTHS),
            references=references.sum(-1),
            scores=SCORES,
            present=LENGTHS > 0,
            graded=torch.tensor([True, True]),
            tokens=TokenNumbers(
                counted=self.counted,
                policy=policy,
                references=references,
                kl={"forward": torch.where(self.counted, torch.stack(kl), 0.0)},
                collisions=collisions,
            ),
        )


@pytest.fixture
def model():
    """Two references; float64."""
    numbers = torch.Generator().manual_seed(3)
    shape = (*LENGTHS.shape, TOKENS)
    return Model(
        torch.randn(*shape, VOCABULARY, generator=numbers, dtype=torch.float64).requires_grad_(),
        torch.randn(2, *shape, VOCABULARY, generator=numbers, dtype=torch.float64),
        torch.randint(VOCABULARY, shape, generator=numbers),
    )


def first_reference(batch, count=1):
    """The batch with fewer references."""
    tokens = dataclasses.replace(
        batch.tokens,
        references=batch.tokens.references[:count],
        kl={name: values[:count] for name, values in batch.tokens.kl.items()},
    )
    return dataclasses.replace(batch, references=batch.references[:count], tokens=tokens)


def slope(loss, weights, **settings):
    return torch.autograd.grad(loss.sum(), weights, retain_graph=True, **settings)[0]


def pairwise(loss_of):
    """The mean over a prompt's pairs of ``loss_of(prompt, winner, loser)``."""
    losses = []
    for row, scores in enumerate(SCORES.tolist()):
        pairs = [
            loss_of(row, i, j) for i, high in enumerate(scores) for j, low in enumerate(scores) if high > low
        ]
        losses.append(sum(pairs) / len(pairs))
    return torch.stack(losses)


def ratios_and_divergences(model):
    """a and K from whole vocabularies, [B, R]."""
    policy, reference = model.policy.log_softmax(-1), model.references[0].log_softmax(-1)
    kl = (reference.exp() * (reference - policy)).sum(-1)
    ratio = model.taken(model.policy) - model.taken(model.references[0])
    return ratio.sum(-1), torch.where(model.counted, kl, 0.0).sum(-1)


def check(model, objective, batch, expected):
    """Value and gradient in the logits."""
    found = objective(batch).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = slope(found, model.policy), slope(expected, model.policy)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_tdpo_from_whole_vocabularies(model):
    a, k = ratios_and_divergences(model)
    batch = first_reference(model.batch)
    check(
        model,
        TDPO1(beta=0.3),
        batch,
        pairwise(lambda b, w, o: -logsigmoid(0.3 * (a[b, w] - a[b, o] - (k[b, o] - k[b, w])))),
    )
    check(
        model,
        TDPO2(beta=0.3, alpha=0.7),
        batch,
        pairwise(lambda b, w, o: -logsigmoid(0.3 * (a[b, w] - a[b, o] - 0.7 * (k[b, o] - k[b, w].detach())))),
    )
    for objective in (TDPO1(beta=0.3), TDPO2(beta=0.3, alpha=0.7)):
        outcome = objective(batch)
        torch.testing.assert_close(outcome.reward, 0.3 * (a + k).detach())
        torch.testing.assert_close(outcome.token_reward.sum(-1), outcome.reward)
        assert not outcome.token_reward.requires_grad


def test_tdpo_has_the_properties_of_its_divergences(model):
    """∂K/∂logits = π_θ − π_ref; K is 0 at the start; only TDPO1 has a gradient, a negative one, in K_w."""
    _, k = ratios_and_divergences(model)
    expected = model.policy.softmax(-1) - model.references[0].softmax(-1)
    batch = first_reference(model.batch)
    torch.testing.assert_close(
        slope(batch.tokens.kl["forward"], model.policy),
        torch.where(model.counted.unsqueeze(-1), expected.detach(), 0.0),
    )
    assert (k[LENGTHS > 0] > 0).all()
    at_start = dataclasses.replace(model, references=model.policy.detach().unsqueeze(0))
    assert at_start.batch.tokens.kl["forward"].abs().max() < 1e-12
    for objective in (TDPO1(), TDPO2()):
        torch.testing.assert_close(objective(at_start.batch).loss, torch.full((2,), 2.0).log().double())

    def of_divergences(objective):
        """The gradients in K of the first prompt's winner and loser."""
        free = batch.tokens.kl["forward"].detach().requires_grad_()
        tokens = dataclasses.replace(batch.tokens, kl={"forward": free})
        return slope(objective(dataclasses.replace(batch, tokens=tokens)).loss, free)[0, 0, :2, 0].tolist()

    (winner, loser), (stopped, same) = of_divergences(TDPO1()), of_divergences(TDPO2(alpha=1.0))
    assert winner < 0 < loser
    assert stopped == 0
    assert same == pytest.approx(loser, rel=1e-12)
    torch.testing.assert_close(TDPO1()(batch).loss, TDPO2(alpha=1.0)(batch).loss)


def test_tgdpo_from_whole_vocabularies(model):
    policy, (reference, guide) = model.taken(model.policy), model.taken(model.references)
    a, guided = policy - reference, 0.3 * (guide - reference)

    def loss(b, w, o):
        chosen = (0.3 * (1 + 0.7 * guided[b, w]) * a[b, w]).sum()
        rejected = (0.3 * (1 - 0.7 * guided[b, o]) * a[b, o]).sum()
        return -logsigmoid(chosen - rejected)

    objective = TGDPO(beta=0.3, alpha=0.7)
    check(model, objective, model.batch, pairwise(loss))
    outcome = objective(model.batch)
    torch.testing.assert_close(outcome.token_reward, 0.3 * a.detach())
    torch.testing.assert_close(outcome.reward, 0.3 * a.detach().sum(-1))


def test_a_constant_guidance_weights_winners_and_losers(model):
    """r̂ = c: the winner's β is β(1 + αc), the loser's β(1 − αc)."""
    shifted = dataclasses.replace(model.batch.tokens, references=model.batch.tokens.references.clone())
    shifted.references[1] = torch.where(model.counted, shifted.references[0] + 0.5 / 0.3, 0.0)
    batch = dataclasses.replace(model.batch, tokens=shifted)
    a = (batch.policy.sum - batch.references[0]).detach()
    expected = pairwise(lambda b, w, o: -logsigmoid(0.3 * (1.35 * a[b, w] - 0.65 * a[b, o])))
    torch.testing.assert_close(TGDPO(beta=0.3, alpha=0.7)(batch).loss, expected)


def test_they_reduce_to_dpo(model):
    """TDPO2 and TGDPO with α = 0, a guide that is the reference, LD-DPO with α = 1 or equal lengths."""
    one = first_reference(model.batch)
    expected = DPO(beta=0.3)(one).loss
    same_guide = dataclasses.replace(model, references=model.references[:1].expand(2, -1, -1, -1, -1))
    for objective, batch in (
        (TDPO2(beta=0.3, alpha=0.0), one),
        (TGDPO(beta=0.3, alpha=0.0), model.batch),
        (TGDPO(beta=0.3, alpha=0.7), same_guide.batch),
        (LDDPO(beta=0.3, alpha=1.0), one),
    ):
        check(model, objective, batch, expected)


def weighted(model, logits, b, i, j, alpha):
    """Σ_{t ≤ m} log p_t + α Σ_{t > m} log p_t of response i in its pair with j."""
    tokens, shared = model.taken(logits)[b, i], min(LENGTHS[b, i], LENGTHS[b, j])
    return tokens[:shared].sum() + alpha * tokens[shared:].sum()


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_ld_dpo_weights_what_the_longer_response_has_more(model, alpha):
    def ratio(b, i, j):
        return weighted(model, model.policy, b, i, j, alpha) - weighted(
            model, model.references[0], b, i, j, alpha
        )

    one, objective = first_reference(model.batch), LDDPO(beta=0.3, alpha=alpha)
    check(
        model, objective, one, pairwise(lambda b, w, o: -logsigmoid(0.3 * (ratio(b, w, o) - ratio(b, o, w))))
    )
    torch.testing.assert_close(objective(one).reward, DPO(beta=0.3)(one).reward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(objective(one).token_reward.sum(-1), objective(one).reward)


def test_tokens_that_do_not_count_do_not_shift_the_length(model):
    """A user's turn within a response: its tokens have no log-prob, and the shared length skips them."""
    one = first_reference(model.batch)

    def apart(values):
        return torch.cat([values[..., :1], torch.zeros_like(values[..., :2]), values[..., 1:]], dim=-1)

    tokens = TokenNumbers(
        counted=apart(one.tokens.counted),
        policy=apart(one.tokens.policy),
        references=apart(one.tokens.references),
    )
    torch.testing.assert_close(LDDPO()(dataclasses.replace(one, tokens=tokens)).loss, LDDPO()(one).loss)


@pytest.mark.parametrize(
    "parts",
    [
        {"score": MeanLogProb(2.0)},
        {"score": MeanLogRatio(0.2), "link": Squared(0.2)},
        {"score": VirtualLogRatio()},
        {"score": LogRatio(0.3), "structure": PlackettLuce()},
    ],
    ids=["SimPO", "IPO", "MRPO", "Plackett-Luce"],
)
def test_length_desensitisation_of_other_objectives(model, parts):
    """α = 1 is plain; on pairs, α < 1 is the plain objective on weighted log-probs."""
    batch = model.batch if isinstance(parts["score"], VirtualLogRatio) else first_reference(model.batch)
    plain = Compose(**parts)
    modified = {
        alpha: Compose(**{**parts, "score": LengthDesensitized(parts["score"], alpha)})
        for alpha in (1.0, 0.4)
    }
    check(model, modified[1.0], batch, plain(batch).loss)
    assert modified[1.0](batch).stats.keys() == plain(batch).stats.keys()

    def pair(logits):
        return torch.stack([weighted(model, logits, 0, 0, 1, 0.4), weighted(model, logits, 0, 1, 0, 0.4)])[
            None
        ]

    references = torch.stack([pair(logits) for logits in model.references[: len(batch.references)]])
    alone = ScoredBatch(
        policy=ResponseLogProbs(sum=pair(model.policy), length=LENGTHS[:1, :2]),
        references=references,
        scores=SCORES[:1, :2],
        present=torch.ones(1, 2, dtype=torch.bool),
        graded=torch.tensor([True]),
    )
    torch.testing.assert_close(modified[0.4](batch).loss[:1], plain(alone).loss)


def test_wpo_weights_pairs_by_the_policys_own_probability(model):
    probabilities = model.policy.softmax(-1).detach()
    own = probabilities.gather(-1, model.labels.unsqueeze(-1)).squeeze(-1)
    ratio = torch.where(model.counted, own / probabilities.square().sum(-1), 1.0).log()
    w = (ratio.sum(-1) / LENGTHS.clamp(min=1)).exp()
    one = first_reference(model.batch)
    a = one.policy.sum - one.references[0]
    expected = pairwise(lambda b, i, j: w[b, i] * w[b, j] * -logsigmoid(0.3 * (a[b, i] - a[b, j])))
    check(model, WPO(beta=0.3), one, expected)


def test_a_policys_own_samples_have_weight_one_on_average(model):
    """E_{y ~ π}[π(y) / Σ_v π(v)²] = 1; a uniform policy gives 1 everywhere, so that WPO is the plain loss."""
    log_probs = model.policy.detach().log_softmax(-1)
    ratio = (log_probs - log_collisions(log_probs)).exp()
    torch.testing.assert_close((log_probs.exp() * ratio).sum(-1), torch.ones_like(ratio[..., 0]))
    uniform = dataclasses.replace(model, policy=torch.zeros_like(model.policy).requires_grad_())
    one = first_reference(uniform.batch)
    torch.testing.assert_close(WPO(beta=0.3)(one).loss, DPO(beta=0.3)(one).loss)
    weighted_simpo = Compose(score=MeanLogProb(2.0), weights=[PolicyProbability()])
    torch.testing.assert_close(weighted_simpo(one).loss, SimPO(beta=2.0, gamma=0.0)(one).loss)


@pytest.mark.parametrize(
    "objective", [TDPO1(), TDPO2(), TGDPO(), LDDPO(), WPO()], ids=lambda o: type(o).__name__
)
def test_extreme_numbers_give_finite_losses_and_gradients(objective):
    """Log-probs to -1e4 per token, divergences to 1e4, in float32."""
    policy = torch.tensor([[[-1e4, -1e4], [0.0, 0.0]], [[0.0, -1e4], [-1e4, 0.0]]]).requires_grad_()
    references = torch.tensor([[[[0.0, 0.0], [-1e4, -1e4]], [[-1e4, 0.0], [0.0, -1e4]]]])
    kl = torch.full_like(references, 1e4).requires_grad_()
    if objective.needs.max_references == 2:
        references = torch.cat([references, references.flip(1)])
    batch = ScoredBatch(
        policy=ResponseLogProbs(sum=policy.sum(-1), length=torch.full((2, 2), 2)),
        references=references.sum(-1),
        scores=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        present=torch.ones(2, 2, dtype=torch.bool),
        graded=torch.tensor([False, False]),
        tokens=TokenNumbers(
            counted=torch.ones(2, 2, 2, dtype=torch.bool),
            policy=policy,
            references=references,
            kl={"forward": kl},
            collisions=torch.full((2, 2, 2), -1e-6),
        ),
    )
    loss = objective(batch).loss
    assert loss.isfinite().all()
    assert slope(loss, policy).isfinite().all()


def test_what_can_not_be_combined_is_refused(model):
    for wrong, said in (
        (lambda: TDPO2(alpha=-1.0), "alpha must be 0 or more"),
        (lambda: TGDPO(beta=0.0), "beta must be above 0"),
        (lambda: LDDPO(alpha=1.5), "expected `alpha` from 0 to 1, got 1.5"),
        (lambda: LengthDesensitized(LogRatioKL(), 0.5), "LogRatioKL reads single tokens: set `score`"),
        (
            lambda: Compose(score=LengthDesensitized(LogRatio(), 0.5), offsets=[Refinement(0.5)]),
            "an offset asks it for rewards of the view 'quality'",
        ),
        (
            lambda: Compose(score=LogRatio(), structure=PlackettLuce(), weights=[PolicyProbability()]),
            "no pair has a loss for `weights` to multiply",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong()
    with pytest.raises(ContractError, match="second views have sums alone"):
        TDPO1()(dataclasses.replace(first_reference(model.batch), tokens=None))


def test_only_what_is_used_is_asked_for():
    assert WPO().needs.tokens == TokenRequest(references=False, collisions=True)
    assert not WPO().needs.tokens.asks_references, "a table of log-probs will do"
    assert TDPO2().needs.tokens == TokenRequest(kl=("forward",))
    simpo = LengthDesensitized(MeanLogProb(), 0.5).needs
    assert simpo == Needs(tokens=TokenRequest(references=False))
    both = Compose(score=LengthDesensitized(LogRatio(), 0.5), weights=[PolicyProbability()]).needs
    assert both.tokens == TokenRequest(collisions=True)

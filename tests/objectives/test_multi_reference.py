"""MRPO, Multi-DPO and the self-refined objectives on whole batches, against loops over plain numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from pl_prefopt import objectives
from pl_prefopt.errors import ConfigError
from pl_prefopt.objectives import (
    DPO,
    IPO,
    MRPO,
    AdaptiveClip,
    AdaptiveWeights,
    FixedClip,
    FixedWeights,
    Geometric,
    Harmonic,
    MultiDPO,
    SrDPO,
    SrIPO,
    UniformWeights,
    VirtualReference,
)
from pl_prefopt.pairing import BestAgainstWorst
from pl_prefopt.views import QualityPrompt
from tests.objectives.batches import (
    NAN,
    ensemble,
    make_batch,
    random_batch,
    select,
)

WEIGHTS = {"adaptive": AdaptiveWeights(), "uniform": UniformWeights(), "fixed": FixedWeights([1, 2, 5])}
CLIPS = {"adaptive": AdaptiveClip(0.3), "fixed": FixedClip(0.05), "none": AdaptiveClip(1e6)}
MEANS = {"harmonic": Harmonic(), "geometric": Geometric()}
MIXES = list(itertools.product(WEIGHTS, CLIPS, MEANS))

MULTI = {
    "mrpo": MRPO(),
    "mrpo_geometric": MRPO(aggregate=Geometric(), clip=FixedClip(0.5)),
    "mrpo_fixed": MRPO(weights=FixedWeights([0.2, 0.3, 0.5]), pairing=BestAgainstWorst()),
    "multi_dpo": MultiDPO(),
    "multi_dpo_uniform": MultiDPO(weights=UniformWeights(), clip=AdaptiveClip(1e6)),
    "sr_mrpo": SrDPO(reference=VirtualReference()),
    "sr_mrpo_ipo": SrIPO(reference=VirtualReference(UniformWeights(), FixedClip(0.2), Geometric())),
}
SINGLE = {"sr_dpo": SrDPO(), "sr_ipo": SrIPO(strength=1.0)}
EVERY = {**MULTI, **SINGLE}


def a_batch(name, seed, **settings):
    return ensemble(seed, 3 if name in MULTI else 1, view="quality", **settings)


# --- an oracle in plain numbers, one pair after the other


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def shares(kind, chosen, rejected):
    count = len(chosen)
    if kind == "fixed":
        return [1 / 8, 2 / 8, 5 / 8]
    gaps = [abs(a - b) for a, b in zip(chosen, rejected, strict=True)]
    if kind == "uniform" or sum(gaps) == 0:
        return [1 / count] * count
    return [gap / sum(gaps) for gap in gaps]


def clipped(kind, own, other):
    """L̂_k of one response of a pair, from the K log-probs of both."""
    epsilon = 0.05
    if kind != "fixed":
        epsilon = (0.3 if kind == "adaptive" else 1e6) * abs(sum(own)) / (abs(sum(own)) + abs(sum(other)))
    low, high = (1 + epsilon) * own[0], (1 - epsilon) * own[0]
    return [own[0], *(min(max(value, low), high) for value in own[1:])]


def mean_of(kind, values, alphas):
    if kind == "geometric":
        return sum(alpha * value for alpha, value in zip(alphas, values, strict=True))
    return -math.log(sum(alpha * math.exp(-value) for alpha, value in zip(alphas, values, strict=True)))


def virtual(weights, clip, mean, own, other):
    """log π̃ of one response of a pair."""
    return mean_of(mean, clipped(clip, own, other), shares(weights, own, other))


def prompts_of(batch):
    """(row, log-probs of the policy by response, of the references by response, its pairs) of each prompt."""
    for row in range(len(batch.scores)):
        here = batch.present[row].nonzero()[:, 0].tolist()
        policy = {i: batch.policy.sum[row, i].item() for i in here}
        columns = {i: batch.references[:, row, i].tolist() for i in here}
        scores = {i: batch.scores[row, i].item() for i in here}
        pairs = [(i, j) for i in here for j in here if scores[i] > scores[j]]
        yield row, policy, columns, pairs


@pytest.mark.parametrize(("weights", "clip", "mean"), MIXES)
def test_mrpo_against_loops(weights, clip, mean):
    batch = ensemble(1)
    settings = {"weights": WEIGHTS[weights], "clip": CLIPS[clip]}
    outcome = MRPO(beta=0.3, aggregate=MEANS[mean], **settings)(batch)
    for row, policy, columns, pairs in prompts_of(batch):
        losses = []
        for i, j in pairs:
            a, b = (
                policy[k] - virtual(weights, clip, mean, columns[k], columns[o]) for k, o in ((i, j), (j, i))
            )
            losses.append(-log_sigmoid(0.3 * (a - b)))
        assert outcome.counted[row] == bool(pairs)
        expected = sum(losses) / len(losses) if losses else 0.0
        assert outcome.loss[row].item() == pytest.approx(expected, abs=2e-5)
        for i in policy:
            others = [columns[j] for j in policy if j != i] or [columns[i]]
            seen = [virtual(weights, clip, mean, columns[i], other) for other in others]
            reward = 0.3 * (policy[i] - sum(seen) / len(seen))
            assert outcome.reward[row, i].item() == pytest.approx(reward, abs=2e-5)


@pytest.mark.parametrize(("weights", "clip"), itertools.product(WEIGHTS, CLIPS))
def test_multi_dpo_against_loops(weights, clip):
    batch = ensemble(2)
    outcome = MultiDPO(beta=0.3, weights=WEIGHTS[weights], clip=CLIPS[clip])(batch)
    for row, policy, columns, pairs in prompts_of(batch):
        losses = []
        for i, j in pairs:
            alphas = shares(weights, columns[i], columns[j])
            first, second = columns[i], columns[j]
            bounds = zip(clipped(clip, first, second), clipped(clip, second, first), strict=True)
            margins = [policy[i] - a - policy[j] + b for a, b in bounds]
            terms = zip(alphas, margins, strict=True)
            losses.append(-sum(alpha * log_sigmoid(0.3 * margin) for alpha, margin in terms))
        expected = sum(losses) / len(losses) if losses else 0.0
        assert outcome.loss[row].item() == pytest.approx(expected, abs=2e-5)
        for i in policy:
            assert outcome.reward[row, i].item() == pytest.approx(0.3 * (policy[i] - columns[i][0]), abs=1e-5)


@pytest.mark.parametrize("ipo", [False, True])
def test_self_refined_mrpo_against_loops(ipo):
    batch = ensemble(3, view="quality")
    view = batch.views["quality"]
    asked = dataclasses.replace(batch, policy=view.policy, references=view.references)
    kind = SrIPO if ipo else SrDPO
    outcome = kind(beta=0.3, strength=0.7, reference=VirtualReference(clip=AdaptiveClip(0.3)))(batch)
    prompts = zip(prompts_of(batch), prompts_of(asked), strict=True)
    for (row, policy, columns, pairs), (_, policy_asked, columns_asked, _) in prompts:
        losses = []
        for i, j in pairs:
            margins = []
            for logps, table in ((policy, columns), (policy_asked, columns_asked)):
                both = (table[i], table[j]), (table[j], table[i])
                won, lost = (virtual("adaptive", "adaptive", "harmonic", *pair) for pair in both)
                margins.append(logps[i] - won - logps[j] + lost)
            h, delta = margins[0], 0.3 * margins[1]
            refined = (h - 0.7 * delta - 1 / 0.6) ** 2 if ipo else -log_sigmoid(0.3 * h - 0.7 * delta)
            losses.append(refined)
        expected = sum(losses) / len(losses) if losses else 0.0
        assert outcome.loss[row].item() == pytest.approx(expected, rel=1e-5, abs=2e-5)


# --- identities


@pytest.mark.parametrize("weights", [AdaptiveWeights(), FixedWeights([1, 2, 5])])
@pytest.mark.parametrize("clip", [AdaptiveClip(0.0), FixedClip(0.0)])
@pytest.mark.parametrize("kind", ["harmonic", "geometric", "multi"])
def test_without_room_it_is_dpo_against_the_first_reference(kind, clip, weights):
    batch = ensemble(4)
    first = dataclasses.replace(batch, references=batch.references[:1])
    same = (
        MultiDPO(weights=weights, clip=clip)
        if kind == "multi"
        else MRPO(weights=weights, clip=clip, aggregate=MEANS[kind])
    )
    mine, dpo = same(batch), DPO()(first)
    torch.testing.assert_close(mine.loss, dpo.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(mine.reward, dpo.reward, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_equal_references_make_all_of_them_dpo(weights):
    batch = ensemble(5, 1)
    thrice = dataclasses.replace(batch, references=batch.references.expand(3, -1, -1))
    expected = DPO()(batch).loss
    for mean in MEANS.values():
        torch.testing.assert_close(
            MRPO(weights=WEIGHTS[weights], aggregate=mean)(thrice).loss, expected, atol=1e-6, rtol=0
        )
    torch.testing.assert_close(MultiDPO(weights=WEIGHTS[weights])(thrice).loss, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("kind", [MRPO, MultiDPO])
def test_all_weight_on_one_reference_is_dpo_against_it(kind, k):
    batch = ensemble(6)
    weights = FixedWeights([float(k == other) for other in range(3)])
    alone = dataclasses.replace(batch, references=batch.references[k : k + 1])
    mine = kind(weights=weights, clip=AdaptiveClip(1e6))(batch)
    torch.testing.assert_close(mine.loss, DPO()(alone).loss, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["mrpo", "multi_dpo"])
def test_one_reference_is_dpo(name):
    batch = ensemble(7, 1)
    torch.testing.assert_close(MULTI[name](batch).loss, DPO()(batch).loss, atol=1e-6, rtol=0)


def test_multi_dpo_is_not_below_mrpo_with_the_geometric_mean():
    for seed in range(20):
        batch = ensemble(seed)
        assert (MultiDPO()(batch).loss >= MRPO(aggregate=Geometric())(batch).loss - 1e-6).all()


@pytest.mark.parametrize(("refined", "plain"), [(SrDPO, DPO), (SrIPO, IPO)])
def test_without_strength_nothing_is_refined(refined, plain):
    batch = ensemble(8, 1, view="quality")
    assert torch.equal(refined(strength=0.0)(batch).loss, plain()(batch).loss)
    assert torch.equal(refined(strength=0.7)(batch).reward, plain()(batch).reward)
    assert not torch.equal(refined(strength=0.7)(batch).loss, plain()(batch).loss)


def test_without_strength_self_refined_mrpo_is_mrpo():
    batch = ensemble(8, 3, view="quality")
    refined, plain = SrDPO(strength=0.0, reference=VirtualReference())(batch), MRPO()(batch)
    assert torch.equal(refined.loss, plain.loss)
    assert torch.equal(refined.reward, plain.reward)
    assert refined.stats == plain.stats


def test_rewards_on_the_view_are_those_of_the_plain_objective_there():
    batch = ensemble(9, 3, view="quality")
    view = batch.views["quality"]
    asked = dataclasses.replace(batch, policy=view.policy, references=view.references)
    objective = SrDPO(reference=VirtualReference())
    outcome = objective(batch)
    assert objective.rewarded_views == tuple(outcome.view_rewards) == ("quality",)
    torch.testing.assert_close(outcome.view_rewards["quality"], MRPO()(asked).reward)


# --- all of them, on ragged rows


@pytest.mark.parametrize("name", EVERY)
def test_finite_at_huge_log_probs(name):
    batch = a_batch(name, 7)
    view = batch.views["quality"]
    batch = dataclasses.replace(
        batch,
        references=300 * batch.references,
        views={"quality": dataclasses.replace(view, references=300 * view.references)},
    )
    outcome = EVERY[name](batch)
    outcome.loss.sum().backward()
    assert outcome.loss.isfinite().all()
    assert outcome.reward.isfinite().all()
    assert batch.policy.sum.grad.isfinite().all()


# --- what the dashboard shows


def test_stats_by_hand():
    # One pair, K = 2: gaps 2 and 6, so α = 0.25, 0.75. ε: 0.1·19/46 and 0.1·27/46, mean 0.05. The second
    # reference, −9 beside −10 and −15 beside −12, is clipped at both. Both references prefer the winner.
    batch = make_batch([[-8.0, -11.0]], None, [[1.0, 0.0]])
    references = torch.tensor([[[-10.0, -12.0]], [[-9.0, -15.0]]])
    stats = MRPO()(dataclasses.replace(batch, references=references)).stats
    expected = {
        "alpha_0": 0.25,
        "alpha_1": 0.75,
        "epsilon": 0.05,
        "clip_rate": 1.0,
        "reference_disagreement": 0.0,
        "reference_accuracy": 1.0,
    }
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(expected)
    assert MultiDPO()(dataclasses.replace(batch, references=references)).stats.keys() == expected.keys() - {
        "reference_accuracy"
    }


def test_references_that_prefer_different_responses_disagree():
    batch = make_batch([[-8.0, -11.0]] * 2, None, [[1.0, 0.0]] * 2)
    references = torch.tensor([[[-10.0, -12.0], [-3.0, -2.0]], [[-9.0, -8.0], [-4.0, -2.0]]])
    stats = MRPO(clip=FixedClip(10.0))(dataclasses.replace(batch, references=references)).stats
    assert stats["reference_disagreement"].item() == 0.5
    # Row 0: α = 2/3, 1/3: −log(2/3 e^10 + 1/3 e^9) = −9.76 > −log(2/3 e^12 + 1/3 e^8) = −11.60, right.
    assert stats["reference_accuracy"].item() == 0.5
    assert stats["clip_rate"].item() == 0.0


def test_stats_of_the_first_reference_alone():
    stats = MRPO()(ensemble(0, 1)).stats
    assert (stats["alpha_0"].item(), stats["clip_rate"].item()) == pytest.approx((1.0, 0.0))


# --- needs and settings


def test_needs():
    several, one = objectives.Needs(min_references=1, min_responses=2), (1, 1)
    assert MRPO().needs == MultiDPO().needs == several
    three = FixedWeights([1, 1, 1])
    for objective in (MRPO(weights=three), MultiDPO(weights=three)):
        assert (objective.needs.min_references, objective.needs.max_references) == (3, 3)
    needs = SrDPO().needs
    assert (needs.min_references, needs.max_references) == one
    assert needs.views == {"quality": QualityPrompt()}
    asked = QualityPrompt(text="Be good.", turn="first")
    mixed = SrIPO(view=asked, reference=VirtualReference()).needs
    assert (mixed.min_references, mixed.max_references, mixed.views) == (1, None, {"quality": asked})


def test_fixed_weights_are_relative():
    batch = random_batch(0, views=False)
    batch = dataclasses.replace(batch, references=torch.cat([batch.references, 2 * batch.references]))
    losses = [MRPO(weights=FixedWeights(values))(batch).loss for values in ([1, 3], [0.25, 0.75])]
    torch.testing.assert_close(*losses)
    assert select(batch, [0]).references.shape == (2, 1, 4)


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (lambda: MRPO(beta=0.0), "beta"),
        (lambda: MultiDPO(beta=NAN), "beta"),
        (lambda: SrDPO(beta=-1.0), "beta"),
        (lambda: SrIPO(strength=-0.1), "strength"),
        (lambda: AdaptiveClip(epsilon_max=-0.1), "epsilon_max"),
        (lambda: FixedClip(epsilon=NAN), "epsilon"),
        (lambda: FixedWeights([]), "values"),
        (lambda: FixedWeights([0.0, 0.0]), "values"),
        (lambda: FixedWeights([1.0, -0.5]), "values"),
        (lambda: QualityPrompt(turn="middle"), "turn"),
    ],
)
def test_settings_out_of_range_name_themselves_in_one_sentence(build, setting):
    with pytest.raises(ConfigError) as caught:
        build()
    message = str(caught.value)
    assert message.startswith(setting)
    assert message.endswith(".")
    assert "\n" not in message

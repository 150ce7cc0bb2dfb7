"""Metrics of whole lists: by hand, against scikit-learn's and SciPy's definitions, and by prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from tests.metrics.inputs import inputs, random_inputs
from tests.metrics.test_metrics import read
from tests.objectives.batches import NAN

NAMES = ("best_of_n", "ndcg", "kendall_within", "likelihood_best", "likelihood_rank_2", "likelihood_gap")


def likelihoods(p, scores, **settings):
    """A batch whose policy gives these mean likelihoods, and rewards them."""
    p = torch.tensor(p)
    return inputs(p, scores, policy=3 * p.log(), length=torch.full(p.shape, 3), **settings)


def test_best_of_n_by_hand():
    # Right; wrong; one of two draws is right; the top is a tie and one of it is first; nothing to rank.
    values = read(
        inputs(
            [[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [2.0, 2.0, 0.0], [0.0, 5.0, 1.0], [9.0, 1.0, 0.0]],
            [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 1.0, NAN]],
        )
    )
    assert values["best_of_n"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_an_untrained_policy_reads_chance():
    values = read(inputs(torch.zeros(3, 4), [[4.0, 3.0, 2.0, 1.0]] * 3))
    assert values["best_of_n"] == 0.25
    assert values["kendall_within"] == 0.0


def test_ndcg_by_hand():
    # Gains over the lowest score: 2, 1, 0; by reward their order is 1, 2, 0.
    values = read(inputs([[2.0, 3.0, 1.0]], [[12.0, 11.0, 10.0]]))
    expected = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert values["ndcg"] == pytest.approx(expected, rel=1e-6)


def test_kendall_within_by_hand():
    # Two of three pairs agree: 1/3. A list in reverse: −1.
    values = read(inputs([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]))
    assert values["kendall_within"] == pytest.approx((1 / 3 - 1) / 2)


def test_likelihoods_by_hand():
    # Second row: two share ranks 1 and 2, and there is no rank 4. Third row: nothing to rank.
    values = read(
        likelihoods(
            [[0.2, 0.8, 0.4, 0.1], [0.3, 0.5, 0.9, 0.7], [0.9, 0.9, 0.9, 0.9]],
            [[1.0, 9.0, 5.0, 0.0], [6.0, 6.0, 2.0, NAN], [1.0, 1.0, 1.0, NAN]],
        )
    )
    assert values["likelihood_best"] == pytest.approx((0.8 + 0.4) / 2)
    assert values["likelihood_rank_2"] == pytest.approx((0.4 + 0.4) / 2)
    assert values["likelihood_rank_3"] == pytest.approx((0.2 + 0.9) / 2)
    assert values["likelihood_rank_4"] == pytest.approx(0.1)
    assert values["likelihood_gap"] == pytest.approx((0.8 - (0.2 + 0.4 + 0.1) / 3 + 0.4 - 0.9) / 2)


def test_every_prompt_weighs_the_same():
    batch = likelihoods(
        [[0.9, 0.1, 0.1, 0.1], [0.2, 0.5, 0.0, 0.0]],
        [[9.0, 1.0, 1.0, 1.0], [2.0, 1.0, NAN, NAN]],
        present=[[True] * 4, [True, True, False, False]],
    )
    values = read(batch)
    assert values["best_of_n"] == 0.5
    assert values["likelihood_gap"] == pytest.approx((0.8 - 0.3) / 2)


def dcg(gains):
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_loops_over_prompts(seed):
    batch = random_inputs(seed, prompts=12)
    expected = {name: [] for name in ("best_of_n", "ndcg", "kendall_within", "gap")}
    known = batch["present"] & ~batch["scores"].isnan()
    p = batch["policy"].mean.exp()
    for row in range(12):
        keep = known[row]
        reward, scores = batch["reward"][row, keep].numpy(), batch["scores"][row, keep].numpy()
        if len(set(scores)) < 2:
            continue
        gains = scores - scores.min()
        expected["best_of_n"].append(scores[reward.argmax()] == scores.max())
        expected["ndcg"].append(dcg(gains[np.argsort(-reward)]) / dcg(np.sort(gains)[::-1]))
        expected["kendall_within"].append(scipy.stats.kendalltau(reward, scores)[0])
        likely, top = p[row, keep].numpy(), scores == scores.max()
        expected["gap"].append(likely[top].mean() - likely[~top].mean())
    assert len(expected["ndcg"]) > 4
    values = read(batch, num_references=1)
    assert values["likelihood_gap"] == pytest.approx(np.mean(expected.pop("gap")), abs=1e-6)
    for name, each in expected.items():
        assert values[name] == pytest.approx(np.mean(each), abs=1e-5), name


@pytest.mark.parametrize("name", NAMES)
def test_absent_and_unknown_responses_have_no_part(name):
    plain = likelihoods([[0.2, 0.8, 0.4]], [[1.0, 9.0, 5.0]])
    more = likelihoods(
        [[0.2, 0.8, 0.4, 0.99, 0.01]],
        [[1.0, 9.0, 5.0, 99.0, NAN]],
        present=[[True, True, True, False, True]],
    )
    assert read(more)[name] == pytest.approx(read(plain)[name])

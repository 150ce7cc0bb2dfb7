"""Mixtures with published weights, and the parts of a composition that its page shows."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from pl_prefopt.objectives import DPO, ColumnWeight, Compose, LogRatio, Objective, StrengthLabel
from tests.docs.pages import ROOT, blocks
from tests.objectives.batches import make_batch
from tests.objectives.test_method_configs import build, load

NLL = 2.25
"""Per token of the chosen response, in a batch of one untrained pair."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rpo", math.log(2) + 0.005 * NLL),
        ("iterative_rpo", math.log(2) + NLL),
        ("mpo", 0.8 * math.log(2) + 0.2 * 2 * math.log(2) + NLL),
    ],
)
def test_a_mixture_has_its_published_weights(name, expected):
    objective = build(load(name))
    batch = make_batch([[-4 * NLL, -7.0]], [[-4 * NLL, -7.0]], [[1.0, 0.0]], graded=[False])
    outcome = objective(batch)
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-6)
    assert {"sigmoid_loss", "sft_loss"} <= outcome.stats.keys()
    (slope,) = torch.autograd.grad(outcome.loss.sum(), batch.policy.sum)
    beta, weights = objective.parts["sigmoid"].beta, objective.weights
    pair = beta / 2 * (weights["sigmoid"] + weights.get("bco_pair", 0.0))
    torch.testing.assert_close(slope, torch.tensor([[-pair - weights["sft"] / 4, pair]]))


def test_a_later_mixture_leaves_no_part_of_an_earlier_one():
    assert list(build(load("mpo"), load("rpo")).parts) == ["sigmoid", "sft"]


def test_the_parts_that_the_page_shows_can_be_made():
    page = blocks(ROOT / "docs" / "methods" / "compose.md")
    shown = yaml.safe_load(next(block.text for block in page if block.text.startswith("label:")))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    score = {"class_path": "pl_prefopt.objectives.LogRatio"}
    given = {"class_path": "pl_prefopt.objectives.Compose", "init_args": {"score": score, **shown}}
    made = parser.instantiate(parser.parse_object({"objective": given})).objective
    assert (made.label, made.weights) == (StrengthLabel("strength", 0.1), (ColumnWeight("magnitude"),))
    assert made.needs.columns == ("magnitude", "strength")


def test_a_label_that_is_certain_is_none():
    batch = make_batch([[-5.0, -9.0]], [[-6.0, -8.0]], [[1.0, 0.0]])
    batch.columns.update(strength=torch.tensor([-1.0]))
    certain = Compose(score=LogRatio(0.1), label=StrengthLabel("strength", weak=1.0))
    torch.testing.assert_close(certain(batch).loss, DPO(beta=0.1)(batch).loss)

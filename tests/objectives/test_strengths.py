"""Labels flipped or smoothed where preferences are weak, and weights from columns."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.objectives import (
    CDPO,
    DPO,
    ColumnLabel,
    ColumnWeight,
    Compose,
    LogRatio,
    MergedPairs,
    StrengthLabel,
    Sum,
    SumOfPairs,
)
from pl_prefopt.rows import Message, PreferenceRow
from tests.objectives.batches import NAN, make_batch

POLICY, REFERENCE = [[-5.0, -9.0], [-7.0, -6.0]], [[-6.0, -8.0], [-6.0, -8.0]]
SCORES = [[1.0, 0.0], [1.0, 0.0]]


def with_column(values, policy=POLICY, reference=REFERENCE, scores=SCORES):
    """Two pairs, the second one weak."""
    batch = make_batch(policy, reference, scores)
    return dataclasses.replace(batch, columns={"strength": torch.tensor(values, dtype=torch.float64)})


def labelled(weak, **options):
    return Compose(score=LogRatio(0.5), label=StrengthLabel("strength", weak, **options))


def both(objective, batch):
    loss = objective(batch).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), batch.policy.sum)[0]


def test_a_flipped_label_is_that_of_the_swapped_pair_and_flipping_twice_changes_nothing():
    swapped = with_column([0.3, -0.2], scores=[[1.0, 0.0], [0.0, 1.0]])
    loss, slope = both(labelled(0.0), with_column([0.3, -0.2]))
    expected, at = both(DPO(beta=0.5), swapped)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slope, at)
    again, _ = both(labelled(0.0), swapped)
    torch.testing.assert_close(again, both(DPO(beta=0.5), with_column([0.3, -0.2]))[0])


def test_weak_labels_are_smoothed_and_the_others_are_not():
    batch = with_column([0.3, -0.2])
    loss, _ = both(labelled(0.9), batch)
    smoothed, plain = both(CDPO(beta=0.5, label_smoothing=0.1), batch)[0], both(DPO(beta=0.5), batch)[0]
    torch.testing.assert_close(loss, torch.stack([plain[0], smoothed[1]]))
    raised, _ = both(labelled(0.9, below=0.5), batch)
    torch.testing.assert_close(raised, smoothed)
    unknown, _ = both(labelled(0.9), with_column([NAN, NAN]))
    torch.testing.assert_close(unknown, plain)


def test_a_smoothed_label_has_its_minimum_at_the_logit():
    margin = math.log(0.8 / 0.2) / 0.5
    batch = with_column([-1.0], [[-5.0 + margin, -9.0]], [[-5.0, -9.0]], [[1.0, 0.0]])
    assert both(labelled(0.8), batch)[1].abs().max() < 1e-6


def test_strengths_per_response_give_each_pair_its_own():
    """Rewards 3, 1, 2 against scores 3, 2, 1: of three pairs the models doubt the last, and it is flipped."""
    policy, reference, scores = [[-5.0, -9.0, -7.0]], [[-6.0, -8.0, -8.0]], [[3.0, 2.0, 1.0]]
    batch = with_column([[3.0, 1.0, 2.0]], policy, reference, scores)
    summed = Compose(score=LogRatio(0.5), structure=SumOfPairs(), label=StrengthLabel("strength", 0.0))(batch)
    reward = 0.5 * (batch.policy.sum - batch.references[0])[0].detach()
    pairs = ((0, 1), (0, 2), (2, 1))
    expected = -sum(torch.nn.functional.logsigmoid(reward[i] - reward[j]) for i, j in pairs)
    torch.testing.assert_close(summed.loss[0], expected)


def test_a_weight_multiplies_loss_and_gradient_of_its_row():
    weighted = Compose(score=LogRatio(0.5), weights=[ColumnWeight("strength")])
    loss, slope = both(weighted, with_column([3.0, 0.0]))
    plain, at = both(DPO(beta=0.5), with_column([3.0, 0.0]))
    factors = torch.tensor([3.0, 0.0])
    torch.testing.assert_close(loss, factors * plain)
    torch.testing.assert_close(slope, factors[:, None] * at)


def row(count, strength):
    return PreferenceRow(
        prompt=(Message("user", "Hi"),),
        responses=tuple((Message("assistant", text),) for text in "abc"[:count]),
        scores=(2.0, 1.0, 0.0)[:count],
        origin="x.jsonl, row 1",
        columns={"strength": strength},
    )


def test_what_a_loss_reads_is_checked_in_all_rows_that_have_one():
    probable = Compose(score=LogRatio(), label=ColumnLabel("strength"))
    for objective, value, said in (
        (probable, 1.7, r"from 0 to 1 .* got 1\.7 in x\.jsonl, row 1 \(val\)"),
        (Compose(score=LogRatio(), weights=[ColumnWeight("strength")]), -1.0, r"row 1 \(val\) has -1\.0"),
        (Sum(parts={"dpo": probable}), 1.7, r"row 1 \(val\)"),
    ):
        with pytest.raises((DataError, ContractError), match=said):
            objective.check_evaluation_rows([row(2, value)], "val")
        objective.check_evaluation_rows([row(2, value)], "predict")  # no loss is computed
    probable.check_evaluation_rows([row(2, None)], "val")  # the training rows must have one, others may


def test_what_can_not_be_read_or_applied_is_refused():
    with pytest.raises(ConfigError, match="weak must be at least 0 and at most 1"):
        StrengthLabel("strength", 1.5)
    with pytest.raises(ConfigError, match="MergedPairs merges margins"):
        Compose(score=LogRatio(), structure=MergedPairs(), label=StrengthLabel("strength", 0.0))
    with pytest.raises(DataError, match=r"one number per response in the column 'strength' .*row 1"):
        labelled(0.0).check_training_rows([row(3, 0.5)])
    weighted = Compose(score=LogRatio(), weights=[ColumnWeight("strength")])
    weighted.check_training_rows([row(3, 0.5)])
    for value in (-1.0, (1.0, 2.0), "much"):
        with pytest.raises(ContractError, match=r"one number of at least 0 per row .*row 1 \(train\) has"):
            weighted.check_training_rows([row(2, value)])

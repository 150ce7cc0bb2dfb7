"""Columns of the rows in runs: objectives and metrics that read them, predictions, loaders of one's own."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from pl_prefopt.callbacks import MetricsFile, PredictionWriter, ReferenceEnsemble
from pl_prefopt.data import datamodule_of
from pl_prefopt.errors import ContractError, DataError
from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics.states import Mean
from pl_prefopt.modules import DPOModule, PreferenceModule
from pl_prefopt.modules import base as module_base
from pl_prefopt.objectives import DPO, KTO, Needs, Objective, PointCE, Sum
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, FrozenModel, PrecomputedTable
from pl_prefopt.types import Outcome
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


class Weighted(Objective):
    """−Σ_r w_b v_br ℓ̄_br with a row's weight w and its responses' votes v, counted from 2⁵³."""

    def __init__(self):
        super().__init__()
        self.seen = []

    @property
    def needs(self):
        return Needs(columns=("weight", "votes", "rater"))

    def forward(self, batch):
        self.seen.append(batch.columns)
        utility = (batch.columns["votes"] - 2**53) * batch.policy.mean
        loss = (0.1 * batch.columns["weight"] * utility.masked_fill(~batch.present, 0.0).sum(-1)).float()
        return Outcome(loss=-loss, counted=batch.present.any(-1), reward=batch.policy.sum.detach())


def voted(count=6):
    rows = scored_rows(count)
    return [
        row
        | {
            "weight": 0.1 + number,
            "votes": [2**53 + place for place in range(len(row["responses"]))],
            "rater": f"r{number}",
            "unread": number,
        }
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_an_objective_gets_the_columns_that_it_asks_for_and_no_others(tiny_model, tmp_path, precision):
    objective = Weighted()
    module = PreferenceModule(lora_spec(tiny_model), objective, optimizer=sgd)
    trainer = make_trainer(tmp_path, limit_train_batches=3, limit_val_batches=0, precision=precision)
    trainer.fit(module, make_datamodule(tmp_path, voted()))
    for held in objective.seen:
        assert sorted(held) == ["rater", "votes", "weight"]
        numbers = [int(name[1:]) for name in held["rater"]]
        assert held["weight"].tolist() == [0.1 + number for number in numbers]  # to the last bit
        assert held["votes"].dtype == torch.int64
        for number, votes in zip(numbers, held["votes"].tolist(), strict=True):
            assert votes[: 2 + number % 3] == [2**53 + place for place in range(2 + number % 3)]
            assert not any(votes[2 + number % 3 :])


class WeightedLength(Mean):
    """A metric that reads a column."""

    columns = ("weight",)
    info = MetricInfo(name="weighted_length", help="A length.", logged="evaluation")

    def update(self, policy, present, columns):
        self.add(columns["weight"][:, None] * policy.length, present)


def test_a_metric_gets_the_columns_that_it_asks_for(tiny_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), DPO(), metrics=[WeightedLength()])
    data = make_datamodule(tmp_path, voted())
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]))
    (measured,) = trainer.validate(module, data, verbose=False)
    batch = data.datasets["val"].batch(range(6))
    lengths = batch.trees["plain"].counted_mask.sum(-1)[batch.present].double()
    weights = batch.columns["weight"][:, None].expand(batch.present.shape)[batch.present]
    assert measured["val/weighted_length"] == pytest.approx((weights * lengths).mean().item(), rel=1e-6)
    with pytest.raises(ContractError, match="WeightedLength needs the column 'weight', but val"):
        trainer.validate(module, make_datamodule(tmp_path), verbose=False)


def test_the_needs_of_parts_add_up():
    parts = Sum(parts={"first": Weighted(), "second": DPO(), "third": Weighted()})
    assert parts.needs.columns == ("weight", "votes", "rater")


def test_a_missing_column_is_refused_before_a_model_loads(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module_base, "build_policy", lambda spec: pytest.fail("the model was loaded"))
    module = PreferenceModule(lora_spec(tiny_model), Weighted(), optimizer=sgd)
    with pytest.raises(
        ContractError, match=r"^Weighted needs the column 'weight', but train \(rows\.jsonl\)"
    ):
        make_trainer(tmp_path).fit(module, make_datamodule(tmp_path))


def test_predictions_have_all_columns_of_a_row(tiny_model, tmp_path):
    rows = [row | {"note": "é\u2028", "none": None, "nested": [{}]} for row in voted(3)]
    rows[1].pop("note")
    trainer = make_trainer(
        tmp_path, ReferenceEnsemble([AdapterOff()]), PredictionWriter(str(tmp_path / "run"))
    )
    module = DPOModule(lora_spec(tiny_model), DPO())
    trainer.predict(module, make_datamodule(tmp_path, rows), return_predictions=False)
    text = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n") if line]
    expected = [{"note": None} | row for row in rows]
    keys = ("weight", "votes", "rater", "unread", "note", "none")
    assert [line["columns"] for line in lines] == [{key: row[key] for key in keys} for row in expected]


# -- loaders of one's own


class Record(Callback):
    """Keeps each training step's loss."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def prepared(folder, tiny_model, rows, **settings):
    """A data module that is set up without a trainer."""
    data = make_datamodule(folder, rows, tokenizer=str(tiny_model), **settings)
    data.prepare_data()
    data.setup()
    return data


def loader_of(data, split="train"):
    """A plain loader of the batches that the data module would give."""
    sampler = data._sampler(data.datasets[split], data.batch_size, shuffle=split == "train")
    return DataLoader(data.datasets[split], batch_size=None, sampler=list(sampler))


@pytest.mark.parametrize(
    ("objective", "rows"), [(DPO, scored_rows(7)), (Weighted, voted(7))], ids=["DPO", "columns"]
)
def test_a_plain_loader_trains_as_the_data_module_does(tiny_model, tmp_path, objective, rows):
    losses, weights = [], []
    for plain in (False, True):
        torch.manual_seed(0)
        record = Record()
        module = PreferenceModule(lora_spec(tiny_model), objective(), optimizer=lambda p: sgd(p))
        members = [AdapterOff()] if objective is DPO else []
        trainer = make_trainer(
            tmp_path, ReferenceEnsemble(members), record, accumulate_grad_batches=3, limit_val_batches=0
        )
        data = prepared(tmp_path, tiny_model, rows)
        if plain:
            with pytest.warns(UserWarning, match="come from a data loader, not from a PreferenceDataModule"):
                trainer.fit(module, loader_of(data))
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "The training batches come from a data loader")
                trainer.fit(module, data)
        losses.append(record.losses)
        weights.append(module.state_dict())
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_what_a_batch_lacks_is_told(tiny_model, tmp_path):
    data = prepared(tmp_path, tiny_model, scored_rows(4))
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), limit_val_batches=0)
    with pytest.raises(ContractError) as refused:
        trainer.fit(PreferenceModule(lora_spec(tiny_model), Weighted(), optimizer=sgd), loader_of(data))
    assert str(refused.value) == (
        "Weighted needs the column 'weight', but a train batch has no such column; its columns are none: add "
        "it to PreferenceBatch.columns."
    )
    with pytest.raises(
        ContractError, match="needs the view 'mismatched' of each row, but a train batch has only"
    ):
        trainer.fit(DPOModule(lora_spec(tiny_model), KTO(), optimizer=sgd), loader_of(data))
    objective = PointCE(score_range=(1.0, 3.0))
    with pytest.raises(
        DataError, match=r"from 1\.0 to 3\.0, but rows\.jsonl, row \d \(train\) has the score"
    ):
        trainer.fit(PreferenceModule(lora_spec(tiny_model), objective, optimizer=sgd), loader_of(data))


class Named(Weighted):
    """Wants raters as numbers."""

    @property
    def needs(self):
        return Needs(columns=("weight", "votes"), names=("rater",))


def test_raters_are_numbers_in_the_steps_and_refused_from_a_loader(tiny_model, tmp_path):
    rows, objective = [row | {"rater": 7 - row["unread"]} for row in voted()], Named()
    module = PreferenceModule(lora_spec(tiny_model), objective, optimizer=sgd)
    make_trainer(tmp_path, limit_train_batches=3, limit_val_batches=0).fit(
        module, make_datamodule(tmp_path, rows)
    )
    for held in objective.seen:  # weights rise from row to row, raters fall
        assert torch.equal(held["rater"], 5 - (held["weight"] - 0.1).round().long())
    assert Needs.of_all(objective.needs, DPO().needs).names == ("rater",)
    data = prepared(tmp_path, tiny_model, rows)
    with pytest.raises(ContractError, match="the names in the column 'rater' get their numbers from a Pref"):
        make_trainer(tmp_path).fit(module, loader_of(data))


def test_references_that_need_all_rows_are_refused_before_a_model_loads(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module_base, "build_policy", lambda spec: pytest.fail("the model was loaded"))
    data = prepared(tmp_path, tiny_model, scored_rows(4))
    (tmp_path / "table").mkdir()
    ensembles = {
        "FrozenModel": ReferenceEnsemble([FrozenModel(PolicySpec(name=str(tiny_model)))]),
        "PrecomputedTable": ReferenceEnsemble([PrecomputedTable(str(tmp_path / "table"))]),
        r"references\.precompute": ReferenceEnsemble([AdapterOff()], precompute=True),
    }
    for name, ensemble in ensembles.items():
        with pytest.raises(ContractError, match=f"^{name} needs all rows and not only batches of them"):
            make_trainer(tmp_path, ensemble).fit(DPOModule(lora_spec(tiny_model), DPO()), loader_of(data))


def test_the_rows_of_an_earlier_command_are_not_those_of_a_loader(tiny_model, tmp_path):
    """A trainer keeps its last data module, whose rows would be taken for the loader's."""
    module = DPOModule(lora_spec(tiny_model), DPO(), optimizer=sgd)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), MetricsFile(str(tmp_path / "run")))
    (tmp_path / "first").mkdir()
    first = make_datamodule(tmp_path / "first", pair_rows(6))
    trainer.validate(module, first, verbose=False)
    assert datamodule_of(trainer) is first
    data = prepared(tmp_path, tiny_model, scored_rows(4))
    trainer.validate(module, loader_of(data, "val"), verbose=False)
    assert trainer.datamodule is first
    assert datamodule_of(trainer) is None
    assert [one.rows for one in read_evaluations(tmp_path / "run" / "metrics.json")] == [6, None]

"""Whole runs of MPPO: every variant, resuming, scores outside the range, references, the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import DataError
from pl_prefopt.modules import MPPOModule
from pl_prefopt.objectives import ListMLE, PairMCM, PairMCS, PairMNM, PairMNS, PairSingle, PointCE, PointMSE
from pl_prefopt.references import AdapterOff
from tests.modules.test_steps import Record, sgd, trained
from tests.runs import lora_spec, make_datamodule, make_trainer, metrics_of, scored_rows

ROOT = Path(__file__).parents[2]
RANGE = (0.0, 9.0)
VARIANTS = [
    PointCE(score_range=RANGE),
    PointMSE(score_range=RANGE),
    PairSingle(),
    PairMNS(),
    PairMNM(),
    PairMCS(num_pairs=2),
    PairMCM(),
    ListMLE(),
]


@pytest.mark.parametrize("objective", VARIANTS, ids=lambda objective: type(objective).__name__)
def test_each_variant_lowers_its_own_loss_on_ragged_rows_without_a_reference(tiny_model, tmp_path, objective):
    def adam(parameters):
        return torch.optim.AdamW(parameters, lr=5e-3)

    torch.manual_seed(0)
    module = MPPOModule(lora_spec(tiny_model), objective, optimizer=adam)
    data = make_datamodule(tmp_path)
    (before,) = make_trainer(tmp_path).validate(module, data, verbose=False)
    make_trainer(tmp_path, max_epochs=4).fit(module, data)
    (after,) = make_trainer(tmp_path).validate(module, data, verbose=False)
    assert after["val/loss"] < before["val/loss"]
    assert "val/log_ratio_0" not in after
    assert 0 < after["val/likelihood_rank_4"] < 1
    assert {"val/best_of_n", "val/ndcg", "val/kendall_within", "val/likelihood_gap"} <= set(after)


def test_references_may_watch(tiny_model, tmp_path):
    module = MPPOModule(lora_spec(tiny_model), PairMNM(), optimizer=sgd)
    ensemble = ReferenceEnsemble([AdapterOff()])
    trainer = make_trainer(tmp_path, ensemble)
    trainer.fit(module, make_datamodule(tmp_path))
    assert trainer.callback_metrics["val/log_ratio_0"] != 0


@pytest.mark.parametrize("make", [PairSingle, lambda: PairMCM(num_pairs=1)], ids=["single", "num_pairs"])
def test_a_resumed_run_draws_what_the_whole_run_draws(tiny_model, tmp_path, make):
    def fit(epochs, checkpoint=None):
        torch.manual_seed(0)
        record, module = Record(), MPPOModule(lora_spec(tiny_model), make(), optimizer=sgd)
        trainer = make_trainer(tmp_path, record, max_epochs=epochs)
        trainer.fit(module, make_datamodule(tmp_path), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        return record.losses, trained(module)

    losses, weights = fit(3)
    begun, _ = fit(1)
    resumed, again = fit(3, tmp_path / "run.ckpt")
    assert begun + resumed == losses
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())


@pytest.mark.parametrize("kind", [PointCE, PointMSE])
@pytest.mark.parametrize("outside", [-0.5, 9.5])
def test_a_score_outside_the_range_names_the_row(tiny_model, tmp_path, kind, outside):
    rows = scored_rows()
    rows[2]["scores"][1] = outside
    module = MPPOModule(lora_spec(tiny_model), kind(score_range=RANGE), optimizer=sgd)
    expected = (
        rf"{kind.__name__} expects .* 0.0 to 9.0, .*rows.jsonl, .* 3 \(.*\) has the score {outside}: set"
    )
    with pytest.raises(DataError, match=expected):
        make_trainer(tmp_path).fit(module, make_datamodule(tmp_path, rows))


def test_scores_outside_do_not_matter_where_nothing_is_learnt(tiny_model, tmp_path):
    module = MPPOModule(lora_spec(tiny_model), PointCE(score_range=(1.0, 2.0)), optimizer=sgd)
    make_trainer(tmp_path).predict(module, make_datamodule(tmp_path), return_predictions=False)


def test_the_demos_data_from_the_command_line(prefopt, tiny_model, tmp_path):
    smoke = {"--trainer.limit_train_batches": 2, "--trainer.limit_val_batches": 2, "--trainer.max_epochs": 1}
    data = {
        "--data.train": ROOT / "scripts/demo/preferences_train.jsonl",
        "--data.val": ROOT / "scripts/demo/preferences_heldout.jsonl",
        "--model.init_args.policy.name": tiny_model,
        "--run_dir": tmp_path / "run",
    }
    settings = [part for pair in (smoke | data).items() for part in pair]
    configs = ("-c", ROOT / "configs/ready/demo.yaml", "-c", ROOT / "configs/methods/mppo_pair_mnm.yaml")
    prefopt("fit", *configs, *settings)
    metrics = metrics_of(tmp_path / "run")
    assert {"val/best_of_n", "val/ndcg", "val/likelihood_best", "val/likelihood_gap"} <= set(metrics)
    assert "val/log_ratio_0" not in metrics


def test_the_module_refuses_other_families_by_name(prefopt, tiny_model):
    configs = ("-c", ROOT / "configs/ready/demo.yaml", "-c", ROOT / "configs/methods/mppo_pair_mnm.yaml")
    objective = "--model.init_args.objective=pl_prefopt.objectives.SimPO"
    printed = prefopt.fails("fit", *configs, "--model.init_args.policy.name", tiny_model, objective)
    assert "MPPOObjective" in printed

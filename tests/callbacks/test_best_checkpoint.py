"""What the best checkpoint's metric may be, and when its absence is told."""

from __future__ import annotations

import warnings

import pytest

from pl_prefopt.callbacks import BestCheckpoint, ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import KTO
from pl_prefopt.references import InitialPolicy
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows


def fit(folder, tiny_model, monitor, rows=None, **settings):
    best = BestCheckpoint(str(folder), filename="best", monitor=monitor)
    references = ReferenceEnsemble([InitialPolicy()])
    trainer = make_trainer(folder, references, best, enable_checkpointing=True, **settings)
    data = make_datamodule(folder, rows or scored_rows(4))
    trainer.fit(DPOModule(lora_spec(tiny_model), KTO(undesirable_weight=0.0)), datamodule=data)
    return (folder / "best.ckpt").exists()


def test_a_metric_of_one_reference_need_not_be_measured_at_once(tmp_path, tiny_model):
    rows = [{"prompt": f"Why {n}?", "completion": "So.", "label": True} for n in range(2)]
    with pytest.warns(UserWarning, match="'val/marginal_0' was not measured"):
        assert not fit(tmp_path, tiny_model, "val/marginal_0", rows, num_sanity_val_steps=1)
    with pytest.raises(ConfigError, match="did you mean 'val/marginal_0'"):
        fit(tmp_path, tiny_model, "val/marginal_k", rows, num_sanity_val_steps=1)


def test_before_the_first_validation_nothing_is_missed(tmp_path, tiny_model):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert fit(tmp_path, tiny_model, "val/loss", max_epochs=2, check_val_every_n_epoch=2)
    assert not [str(one.message) for one in said if "No best checkpoint" in str(one.message)]

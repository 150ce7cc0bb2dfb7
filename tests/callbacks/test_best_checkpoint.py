"""What the best checkpoint's metric may be, and when its absence is told."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from pl_prefopt.callbacks import BestCheckpoint, FirstValidation, ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import KTO
from pl_prefopt.references import InitialPolicy
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows


def fit(folder, tiny_model, monitor, rows=None, *, mode="min", stopping=None, checkpoint=None, **settings):
    best = BestCheckpoint(str(folder), filename="best", monitor=monitor, mode=mode)
    callbacks = [ReferenceEnsemble([InitialPolicy()]), best, *([stopping] if stopping else [])]
    trainer = make_trainer(folder, *callbacks, enable_checkpointing=True, **settings)
    data = make_datamodule(folder, rows or scored_rows(4))
    trainer.fit(
        DPOModule(lora_spec(tiny_model), KTO(undesirable_weight=0.0)), datamodule=data, ckpt_path=checkpoint
    )
    return (folder / "best.ckpt").exists()


def test_a_metric_of_one_reference_need_not_be_measured_at_once(tmp_path, tiny_model):
    rows = [{"prompt": f"Why {n}?", "completion": "So.", "label": True} for n in range(2)]
    settings = {"mode": "max", "num_sanity_val_steps": 1}
    with pytest.warns(UserWarning, match="'val/log_ratio_margin_0' was not measured"):
        assert not fit(tmp_path, tiny_model, "val/log_ratio_margin_0", rows, **settings)
    with pytest.raises(ConfigError, match="did you mean 'val/log_ratio_margin_0'"):
        fit(tmp_path, tiny_model, "val/log_ratio_margin_k", rows, **settings)


@pytest.mark.parametrize(
    ("monitor", "mode", "said"),
    [
        (
            "val/marginal_0",
            "max",
            "BestCheckpoint.monitor: the metric 'val/marginal_0' is called 'val/log_ratio_margin_0' now",
        ),
        ("val/loss", "max", "lower values of val/loss are better, but `mode` is max: set it to min"),
        ("val/accuracy", "min", "higher values of val/accuracy are better, but `mode` is min"),
        ("val/accuracy_low", "max", "'val/accuracy_low' is measured by `prefopt test` alone"),
        ("train/kendall", "max", "'train/kendall' is not measured in training: set it to 'val/kendall'"),
    ],
)
def test_what_is_monitored_exists_and_is_better_in_that_direction(
    tmp_path, tiny_model, monitor, mode, said, monkeypatch
):
    monkeypatch.setattr(DPOModule, "load", None)  # before any model is loaded
    with pytest.raises(ConfigError, match=re.escape(said)):
        fit(tmp_path, tiny_model, monitor, mode=mode)
    with pytest.raises(ConfigError, match=r"EarlyStopping\.monitor: .*log_ratio_margin_1"):
        fit(tmp_path, tiny_model, "val/loss", stopping=EarlyStopping("val/marginal_1"))


def test_before_the_first_validation_nothing_is_missed(tmp_path, tiny_model):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert fit(tmp_path, tiny_model, "val/loss", max_epochs=2, check_val_every_n_epoch=2)
    assert not [str(one.message) for one in said if "No best checkpoint" in str(one.message)]


def test_the_value_from_before_training_is_no_later_checkpoint_s(tmp_path, tiny_model):
    first = {"stopping": FirstValidation()}
    assert not fit(tmp_path, tiny_model, "val/loss", max_steps=1, **first)  # of an epoch of 2
    assert fit(tmp_path, tiny_model, "val/loss", **first)


def test_what_was_best_is_known_under_the_metrics_former_name(tmp_path, tiny_model):
    """A run of an earlier version keeps its best value and its patience when its monitor is renamed."""
    stopping = EarlyStopping("val/log_ratio_0", mode="max")
    fit(tmp_path, tiny_model, "val/log_ratio_0", mode="max", stopping=stopping)
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=False)
    states = {key.replace("log_ratio_0", "kl_0"): state for key, state in checkpoint["callbacks"].items()}
    for key, state in states.items():
        if "kl_0" in key:
            name = "best_score" if "Stopping" in key else "best_model_score"
            state[name] = torch.tensor(1e6)  # better than any validation to come
    torch.save({**checkpoint, "callbacks": states}, tmp_path / "old.ckpt")
    stopping = EarlyStopping("val/log_ratio_0", mode="max")
    fit(
        tmp_path,
        tiny_model,
        "val/log_ratio_0",
        mode="max",
        stopping=stopping,
        max_epochs=2,
        checkpoint=tmp_path / "old.ckpt",
    )
    assert float(stopping.best_score) == 1e6
    assert stopping.wait_count > 0

"""The learning rate that Lightning's finder suggests is the one that a run uses, resumes with and keeps."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule, Schedule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff
from tests.runs import LORA, make_datamodule, make_trainer, scored_rows

COSINE = Schedule(name="cosine", warmup=2)


class Finder(LearningRateFinder):
    """One of a user's own, which searches for 20 steps."""

    def __init__(self, **settings):
        super().__init__(**{"num_training_steps": 20, "min_lr": 1e-4, "max_lr": 0.5, **settings})


def make(folder, tiny_model, *callbacks, lr=1e-3, schedule=COSINE, **settings):
    """A run of three epochs of eight steps; with dropout, so that it depends on random numbers."""
    torch.manual_seed(3)
    spec = PolicySpec(name=str(tiny_model), lora={**LORA, "lora_dropout": 0.1})
    optimizer = lambda weights: torch.optim.AdamW(weights, lr=lr)  # noqa: E731
    module = DPOModule(spec, DPO(), optimizer=optimizer, schedule=schedule)
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(
        folder,
        *callbacks,
        ReferenceEnsemble([AdapterOff()]),
        LearningRateMonitor(),
        **{"max_epochs": 3, "logger": CSVLogger(folder, name="", version=""), **settings},
    )
    return module, trainer, make_datamodule(folder, scored_rows(8), batch_size=1)


def fit(folder, tiny_model, *callbacks, ckpt_path=None, **settings):
    module, trainer, data = make(folder, tiny_model, *callbacks, **settings)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "end.ckpt")
    weights = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    return module, weights


def curves(folder):
    """What was logged at each step, without what depends on the clock."""
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_uses_the_rate_found_as_if_it_were_configured(tiny_model, tmp_path):
    finder = Finder()
    module, weights = fit(tmp_path / "found", tiny_model, finder)
    found = finder.optimal_lr.suggestion()
    assert found is not None
    assert found != 1e-3
    assert module.lr == found
    _, same = fit(tmp_path / "configured", tiny_model, lr=found)
    equal(weights, same)
    # The search's steps are in no curve either.
    assert curves(tmp_path / "found") == curves(tmp_path / "configured")


def test_a_resumed_run_keeps_the_rate_found(tiny_model, tmp_path):
    finder, again = Finder(), Finder()
    _, whole = fit(tmp_path / "whole", tiny_model, finder)
    fit(tmp_path / "first", tiny_model, Finder(), max_steps=10)
    module, resumed = fit(
        tmp_path / "second", tiny_model, again, ckpt_path=tmp_path / "first" / "end.ckpt", max_steps=24
    )
    assert again.optimal_lr is None
    assert module.lr == finder.optimal_lr.suggestion()
    # The schedule of the first ten steps was another.
    assert resumed.keys() == whole.keys()


def test_tuners_of_scripts_work_and_say_what_they_found(tiny_model, tmp_path):
    module, trainer, data = make(tmp_path, tiny_model)
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=20, min_lr=1e-4, max_lr=0.5)
    assert found is not None
    assert found.suggestion() is not None
    assert not any(isinstance(callback, LearningRateFinder) for callback in trainer.callbacks)
    with pytest.raises(ConfigError, match=r"prefopt plan.*max_tokens_per_batch"):
        Tuner(trainer).scale_batch_size(module, datamodule=data)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_training_steps": 8}, "8 of the 8"),
        ({"max_lr": 1e30, "early_stop_threshold": None}, r"\d of the 20"),  # the loss itself may be NaN
    ],
)
def test_a_search_that_finds_nothing_is_refused(tiny_model, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=f"no learning rate: {said} losses"):
        fit(tmp_path, tiny_model, Finder(**settings))


def test_a_schedule_bound_to_the_configured_rate_is_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"'polynomial' depends on the configured one"):
        fit(tmp_path, tiny_model, Finder(), schedule=Schedule(name="polynomial"))


def test_the_schedule_counts_steps_of_changing_accumulation(tiny_model, tmp_path):
    accumulation = GradientAccumulationScheduler({0: 1, 1: 4})
    fit(tmp_path, tiny_model, accumulation, schedule=Schedule(name="linear"), lr=1.0)
    rates = {row["step"]: float(row["lr-AdamW"]) for row in curves(tmp_path) if row["lr-AdamW"]}
    assert list(rates.values()) == pytest.approx([1 - step / 12 for step in range(12)])


def test_an_endless_run_needs_a_schedule_without_an_end(tiny_model, tmp_path):
    endless = {"max_epochs": -1, "max_time": {"seconds": 0}}
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs -1 leaves open"):
        fit(tmp_path, tiny_model, **endless)
    fit(tmp_path, tiny_model, **endless, schedule=Schedule(warmup=3))

"""Weight averaging: the numbers, what a checkpoint holds, and what references see of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.callbacks import WeightAveraging as EqualWeights

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.references import AdapterOff
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows

DECAY = 0.5


def weights_of(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


class Record(Callback):
    """Keeps the weights after each step and at each validation, and the references' log-probs."""

    def __init__(self):
        self.trained, self.validated, self.references, self.margins = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > len(self.trained):
            self.trained.append(weights_of(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, *_):
        self.validated.append(weights_of(pl_module))

    def on_validation_end(self, trainer, pl_module):
        for name, weight in weights_of(pl_module).items():  # where sample answers are generated
            assert torch.equal(weight, self.validated[-1][name])

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.references.append(batch.references["plain"].clone())
        self.margins.append(outputs[1].loss.clone())


def make_module(tiny_model, lr=0.05):
    return DPOModule(
        lora_spec(tiny_model), DPO(), optimizer=lambda weights: torch.optim.AdamW(weights, lr=lr)
    )


def train(folder, tiny_model, *callbacks, ckpt_path=None, **settings):
    """Four steps an epoch, a validation of one batch after each epoch."""
    torch.manual_seed(0)
    module, record = make_module(tiny_model), Record()
    rows = scored_rows(4)
    trainer = make_trainer(
        folder,
        *callbacks,
        ReferenceEnsemble([AdapterOff()]),
        record,
        **{"max_epochs": 2, "limit_val_batches": 1, "enable_checkpointing": True, **settings},
    )
    data = make_datamodule(folder, rows, batch_size=1)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, record


def every_epoch(folder):
    return ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)


def ema(history, before):
    """The exponential average of a history of weights, of which torch counts the first in full."""
    average = history[0]
    for now in history[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * now[name] for name in before}
    return average


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("callback", "mean"),
    [
        (lambda: EMAWeightAveraging(decay=DECAY), ema),
        (
            EqualWeights,
            lambda history, before: {
                name: torch.stack([one[name] for one in history]).mean(dim=0) for name in before
            },
        ),
    ],
    ids=["EMA", "equal weights"],
)
def test_the_average_is_validated_saved_and_left(tiny_model, tmp_path, callback, mean):
    module, record = train(tmp_path, tiny_model, callback(), every_epoch(tmp_path))
    assert len(record.trained) == 8
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    frozen = [name for name in record.trained[0] if name not in trained]
    for epoch, steps in ((0, 4), (1, 8)):
        expected = mean(record.trained[:steps], trained)
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        assert saved["state_dict"].keys() == saved["current_model_state"].keys() == set(trained)
        for name in trained:
            torch.testing.assert_close(saved["state_dict"][name], expected[name])
            torch.testing.assert_close(record.validated[epoch][name], expected[name])
            assert torch.equal(saved["current_model_state"][name], record.trained[steps - 1][name])
        # Nothing else changes by a bit: not what is frozen, and so not the references.
        assert all(torch.equal(record.validated[epoch][name], record.trained[0][name]) for name in frozen)
    assert torch.equal(record.references[0], record.references[1])
    assert not torch.equal(record.margins[0], record.margins[1])
    left = weights_of(module)
    assert all(torch.equal(left[name], saved["state_dict"][name]) for name in trained)


@pytest.mark.parametrize("callback", [lambda: EMAWeightAveraging(decay=DECAY), EqualWeights])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_model, tmp_path, callback, precision):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole, _ = train(tmp_path, tiny_model, callback(), every_epoch(tmp_path / "whole"), precision=precision)
    resumed, _ = train(
        tmp_path,
        tiny_model,
        callback(),
        every_epoch(tmp_path / "resumed"),
        ckpt_path=tmp_path / "whole" / "epoch=0.ckpt",
        precision=precision,
    )
    equal(weights_of(resumed), weights_of(whole))
    one, other = (
        torch.load(tmp_path / name / "epoch=1.ckpt", weights_only=True) for name in ("whole", "resumed")
    )
    equal(other["state_dict"], one["state_dict"])
    equal(other["current_model_state"], one["current_model_state"])
    assert all(weight.dtype == torch.float32 for weight in one["state_dict"].values())


class StopsInValidation(Callback):
    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == 8:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "amid.ckpt")


def test_a_checkpoint_from_the_middle_of_a_validation_has_each_in_its_place(tiny_model, tmp_path):
    train(tmp_path, tiny_model, EMAWeightAveraging(decay=DECAY), StopsInValidation(), every_epoch(tmp_path))
    amid, after = (torch.load(tmp_path / name, weights_only=True) for name in ("amid.ckpt", "epoch=1.ckpt"))
    equal(amid["state_dict"], after["state_dict"])
    equal(amid["current_model_state"], after["current_model_state"])


def test_before_the_first_average_the_weights_are_those_being_trained(tiny_model, tmp_path):
    late = EMAWeightAveraging(decay=DECAY, update_starting_at_step=100)
    averaged, record = train(tmp_path, tiny_model, late, every_epoch(tmp_path))
    plain, other = train(tmp_path, tiny_model)
    equal(weights_of(averaged), weights_of(plain))
    for mine, its in zip(record.margins, other.margins, strict=True):
        assert torch.equal(mine, its)


def test_averages_are_not_taken_for_weights(tiny_model, tmp_path):
    train(tmp_path, tiny_model, EMAWeightAveraging(decay=DECAY), every_epoch(tmp_path))
    with pytest.raises(ConfigError, match="holds averaged weights"):
        train(tmp_path, tiny_model, ckpt_path=tmp_path / "epoch=0.ckpt")

"""Float32 master copies of weights that are computed with in bfloat16."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule, FSDP2Strategy, Schedule
from pl_prefopt.modules.master_weights import MasterWeights
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, InitialPolicy
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows


class Watch(Callback):
    """Keeps learning rates, and a step's gradients as the optimiser has them before it clips them."""

    def __init__(self, stop=None):
        self.rates, self.gradients, self.stop = [], [], stop

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if trainer.global_step == self.stop:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/stopped.ckpt")

    def on_before_optimizer_step(self, trainer, module, optimizer):
        (group,) = optimizer.param_groups
        self.gradients.append([weight.grad.clone() for weight in group["params"]])


def train(folder, spec, *callbacks, lr=1e-4, masters=True, stop=None, checkpoint=None, **settings):
    torch.manual_seed(0)
    module = DPOModule(
        spec,
        DPO(beta=0.5),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=lr, weight_decay=0.0),
        schedule=Schedule(name="linear"),
        master_weights=masters,
    )
    watch = Watch(stop)
    settings = {"precision": "bf16-true", "max_epochs": 8, "gradient_clip_val": 1.0, **settings}
    trainer = make_trainer(
        folder, ReferenceEnsemble([InitialPolicy()]), watch, *callbacks, limit_val_batches=0, **settings
    )
    data = make_datamodule(folder, pair_rows(4))
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, watch, trainer


def learn(dtype, masters):
    """Fit a small network to a fixed function; return the loss before each of 60 steps, and what is held."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(torch.bfloat16).to(dtype)
    inputs = torch.randn(64, 8).bfloat16().to(dtype)
    targets = inputs.float().sin().sum(dim=1, keepdim=True)
    held, weights = MasterWeights(), dict(model.named_parameters())
    optimised = held.replace(weights) if masters else list(weights.values())
    optimizer = torch.optim.AdamW(optimised, lr=3e-4, weight_decay=0.0)
    held.follow(optimizer)
    losses = []
    for _ in range(60):
        loss = (model(inputs).float() - targets).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        held.take_gradients()
        optimizer.step()
    return losses, held.of(weights)


def test_masters_learn_as_float32_does_where_bfloat16_weights_stall():
    (exact, wanted), (close, copies) = (
        learn(torch.float32, masters=False),
        learn(torch.bfloat16, masters=True),
    )
    stalled, rounded = learn(torch.bfloat16, masters=False)
    learned = exact[0] - exact[-1]
    assert learned > 0.5
    assert close == pytest.approx(exact, abs=0.03 * learned)
    assert stalled[0] - stalled[-1] < 0.7 * learned
    for name, value in wanted.items():
        assert copies[name].dtype == torch.float32
        assert (copies[name] - value).norm() < 0.2 * (rounded[name].float() - value).norm()


@pytest.mark.parametrize("averaged", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_model, tmp_path, averaged):
    spec = lora_spec(tiny_model, dtype="bfloat16")
    callbacks = (lambda: [EMAWeightAveraging(decay=0.5)]) if averaged else list
    settings = {"lr": 1e-3, "accumulate_grad_batches": 2, "max_epochs": 2}
    whole, watch, trainer = train(tmp_path, spec, *callbacks(), **settings, stop=1)
    again, _, other = train(tmp_path, spec, *callbacks(), **settings, checkpoint=tmp_path / "stopped.ckpt")
    assert trainer.global_step == other.global_step == 2
    assert watch.rates == pytest.approx([1e-3, 5e-4, 5e-4, 0])
    assert not all(torch.equal(value, value.bfloat16().float()) for value in whole.trained_values().values())
    for one, its in (
        (whole.state_dict(), again.state_dict()),
        (whole.trained_values(), again.trained_values()),
    ):
        assert one.keys() == its.keys()
        assert all(torch.equal(its[name], value) for name, value in one.items())
    if averaged:
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
        assert all(
            torch.equal(value, whole.trained_values()[name])
            for name, value in saved["current_model_state"].items()
        )


def test_gradients_are_added_and_clipped_in_float32(tiny_model, tmp_path):
    spec = PolicySpec(name=str(tiny_model))
    single, together = (
        train(
            tmp_path, spec, lr=0.0, max_epochs=1, gradient_clip_val=clip, accumulate_grad_batches=accumulate
        )[1].gradients
        for clip, accumulate in ((None, 1), (0.01, 2))
    )
    assert (len(single), len(together)) == (2, 1)
    means = [(first + second) / 2 for first, second in zip(*single, strict=True)]
    norm = torch.cat([mean.flatten() for mean in means]).norm()
    assert norm > 0.01
    for found, mean in zip(together[0], means, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("reference", [AdapterOff, InitialPolicy])
def test_an_untrained_policy_equals_its_reference_bit_by_bit(tiny_model, tmp_path, reference):
    module = DPOModule(lora_spec(tiny_model), DPO(), master_weights=True)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([reference()]), precision="bf16-true")
    (found,) = trainer.validate(module, make_datamodule(tmp_path, pair_rows(2)), verbose=False)
    assert found["val/log_ratio_0"] == 0
    assert found["val/loss"] == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16-mixed"}, r"trainer.precision is bf16-mixed: set trainer.precision to bf16-true"),
        ({"strategy": FSDP2Strategy(data_parallel_size=1, tensor_parallel_size=1)}, "needs whole weights"),
    ],
)
def test_masters_are_refused_where_they_do_nothing(tiny_model, tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(
        "pl_prefopt.modules.base.build_policy", lambda spec: pytest.fail("a model was loaded")
    )
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, PolicySpec(name=str(tiny_model)), **settings)

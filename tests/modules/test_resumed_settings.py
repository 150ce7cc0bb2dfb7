"""Where a run goes on, settings are those asked for, and what an optimiser counts is the checkpoint's."""

from __future__ import annotations

import warnings

import pytest
import torch

from pl_prefopt.modules import MPPOModule
from pl_prefopt.modules.resumed_settings import keep_settings, settings_of
from pl_prefopt.objectives import PairMNM
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows


class Counting(torch.optim.AdamW):
    """Counts its steps among its settings, as schedule-free optimisers and Prodigy do."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, **settings)
        for group in self.param_groups:
            group["steps"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
        return super().step(closure)


def two_groups(decay):
    def make(weights):
        weights = list(weights)
        rest = {"params": weights[1:], "weight_decay": decay}
        return Counting([{"params": weights[:1]}, rest], lr=0.01, betas=(0.9, 0.95))

    return make


def train(folder, tiny_model, epochs, decay, checkpoint=None):
    module = MPPOModule(lora_spec(tiny_model), PairMNM(), optimizer=two_groups(decay))
    trainer = make_trainer(folder, max_epochs=epochs)
    trainer.fit(module, datamodule=make_datamodule(folder, scored_rows(4)), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "run.ckpt")
    return trainer.optimizers[0].param_groups


def test_counts_of_steps_move_to_the_device_for_a_fused_optimiser():
    weight = torch.nn.Parameter(torch.empty(2, device="meta"))
    optimizer = torch.optim.AdamW([weight])
    saved = settings_of(optimizer)
    moments = {name: torch.empty(2, device="meta") for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": torch.tensor(3.0), **moments}
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    wanted = [{**group, "fused": True} for group in saved]
    with pytest.warns(UserWarning, match="fused is True; the checkpoint's was None"):
        keep_settings(optimizer, scheduler, wanted, saved)
    assert optimizer.state[weight]["step"].is_meta


def rewrite(checkpoint):
    """Make lists of pairs, as torch does where weights are split."""
    content = torch.load(checkpoint, weights_only=True)
    for group in content["optimizer_states"][0]["param_groups"]:
        group["betas"] = list(group["betas"])
    torch.save(content, checkpoint)


def test_what_an_optimiser_counts_goes_on_beside_a_new_setting(tmp_path, tiny_model):
    first = train(tmp_path, tiny_model, 1, 0.1)
    assert [group["steps"] for group in first] == [2, 2]
    checkpoint = tmp_path / "run.ckpt"
    rewrite(checkpoint)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        same = train(tmp_path, tiny_model, 2, 0.1, checkpoint)
    assert not [str(one.message) for one in said if "From here on" in str(one.message)]
    assert [group["steps"] for group in same] == [4, 4]
    with pytest.warns(UserWarning, match=r"weight_decay is 0\.2; the checkpoint's was 0\.1"):
        other = train(tmp_path, tiny_model, 3, 0.2, checkpoint)
    assert [(group["steps"], group["weight_decay"]) for group in other] == [(6, 0.01), (6, 0.2)]

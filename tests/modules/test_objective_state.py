"""Objectives that look beyond a batch: what they gather is resumed, and what they can't see is refused."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import PreferenceModule
from pl_prefopt.modules import base as module_base
from pl_prefopt.objectives import AOT, BCO, DPO, SFT, Sum
from pl_prefopt.references import AdapterOff
from tests.runs import lora_spec, make_datamodule, make_trainer

ROWS = [{"prompt": f"Say {n}.", "completion": f"{n} is said.", "label": bool(n % 3)} for n in range(5)]


class Save(Callback):
    """Saves after each batch, and keeps δ."""

    def __init__(self, folder):
        self.folder, self.deltas = folder, {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.deltas[done] = module._stats["bco_delta"].item()
        if done in (2, 8):
            trainer.save_checkpoint(self.folder / f"{done}.ckpt")


def fit(tiny_model, folder, checkpoint=None):
    torch.manual_seed(0)
    objective = Sum(parts={"bco": BCO(beta=0.5)})
    module = PreferenceModule(
        lora_spec(tiny_model), objective, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5)
    )
    save = Save(folder)
    trainer = make_trainer(
        folder, save, ReferenceEnsemble([AdapterOff()]), accumulate_grad_batches=3, max_epochs=2
    )
    trainer.fit(module, make_datamodule(folder, ROWS, batch_size=1), ckpt_path=checkpoint)
    weights = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    return weights, save.deltas, objective.state_dict()


def test_the_running_mean_is_resumed_amid_a_step_and_after_it(tiny_model, tmp_path):
    (tmp_path / "whole").mkdir()
    weights, deltas, state = fit(tiny_model, tmp_path / "whole")
    assert list(state) == ["parts.bco._extra_state"]
    assert state["parts.bco._extra_state"][1] == 10
    assert len(set(deltas.values())) > 5
    for batches, begins in ((2, 1), (8, 9)):  # amid the first step, and after the first of the second epoch
        folder = tmp_path / f"from {batches}"
        folder.mkdir()
        again, resumed, at_end = fit(tiny_model, folder, tmp_path / "whole" / f"{batches}.ckpt")
        assert resumed == {number: delta for number, delta in deltas.items() if number >= begins}
        assert torch.equal(at_end["parts.bco._extra_state"], state["parts.bco._extra_state"])
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("objective", "settings", "said"),
    [
        (AOT(), {"accumulate_grad_batches": 2}, "AOT depends on all prompts .* accumulated, 2 each: set"),
        (
            Sum(parts={"dpo": DPO(), "sft": SFT(average="token")}),
            {"callbacks": [GradientAccumulationScheduler({1: 2})]},
            "accumulated, by GradientAccumulationScheduler",
        ),
    ],
)
def test_accumulated_batches_are_refused_where_a_loss_is_that_of_the_step(
    tiny_model, tmp_path, monkeypatch, objective, settings, said
):
    monkeypatch.setattr(module_base, "build_policy", lambda spec: pytest.fail("the model was loaded"))
    trainer = make_trainer(
        tmp_path, ReferenceEnsemble([AdapterOff()]), *settings.pop("callbacks", ()), **settings
    )
    with pytest.raises(ConfigError, match=said):
        trainer.fit(PreferenceModule(lora_spec(tiny_model), objective), make_datamodule(tmp_path))

"""The trainer's precision is that of the references, too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec, build_frozen, sketch_frozen
from pl_prefopt.references import InitialPolicy
from pl_prefopt.references.tables import read_tensors
from tests.runs import make_datamodule, make_trainer

PRECISIONS = ["32-true", "64-true", "bf16-true", "bf16-mixed"]


def validate(folder, tiny_model, precision, **settings):
    ensemble = ReferenceEnsemble([InitialPolicy()], cache_dir=str(folder / "tables"), **settings)
    module = DPOModule(PolicySpec(name=str(tiny_model)), DPO())
    trainer = make_trainer(folder, ensemble, precision=precision)
    (measured,) = trainer.validate(module, datamodule=make_datamodule(folder), verbose=False)
    return measured, ensemble


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_untrained_policy_is_its_own_reference(tiny_model, tmp_path, precision):
    measured, _ = validate(tmp_path, tiny_model, precision)
    assert measured["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert measured["val/margin"] == 0


def test_bf16_true_computes_as_transformers_does_in_bfloat16(tiny_model, tmp_path):
    """Rotary frequencies stay in float32, and what an objective creates is float32."""

    class Default(DPO):
        def forward(self, batch):
            created.append(torch.ones(1).dtype)
            return super().forward(batch)

    created, ids = [], torch.arange(5, 300).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    module = DPOModule(PolicySpec(name=str(tiny_model)), Default())
    ensemble = ReferenceEnsemble([InitialPolicy()])
    trainer = make_trainer(tmp_path, ensemble, precision="bf16-true")
    trainer.validate(module, datamodule=make_datamodule(tmp_path), verbose=False)
    reference = module.load(module.policy_spec, build_frozen, sketch_frozen)
    with torch.no_grad():
        for model in (module.policy, reference):
            assert torch.equal(model.eval()(ids).logits, plain(ids).logits)
    assert set(created) == {torch.float32}


def test_each_precision_has_a_table_of_its_own(tiny_model, tmp_path):
    tables = {}
    for precision in PRECISIONS:
        measured, ensemble = validate(tmp_path, tiny_model, precision, precompute=True)
        # Rows of a table are scored in other batches than in training.
        assert measured["val/loss"] == pytest.approx(math.log(2), abs=1e-6 if "b" not in precision else 0.1)
        (folder,) = ensemble.tables
        (path,) = Path(folder).glob("*.safetensors")
        tables[str(path)] = read_tensors(path)["log_probs"].nan_to_num()
    assert len(tables) == len(PRECISIONS)
    exact, _, rounded, _ = tables.values()
    assert (exact - rounded).abs().max() > 1e-3

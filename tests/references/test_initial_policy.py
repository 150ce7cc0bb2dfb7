"""Whatever the adapter, an untrained policy is its own reference, and training leaves the reference alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec, build_frozen, build_policy, check_splittable
from pl_prefopt.policies import build as build_module
from pl_prefopt.references import AdapterOff, FrozenModel, InitialPolicy, NamedAdapter
from tests.adapters import STARTS, save_tied_model
from tests.callbacks.test_reference_ensemble import Keep, gather, scored_by
from tests.runs import LORA, make_datamodule, make_trainer

AS_THE_BASE = set(STARTS) - {"random", "replicated layers"}
"""Settings whose start is the base by construction, up to rounding."""
WRITTEN_TO = {"pissa": {"init_lora_weights": "pissa"}, "biases": {"bias": "all"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with biases, whose embeddings are tied."""
    return save_tied_model(tmp_path_factory.mktemp("tied"))


def module_with(spec):
    return DPOModule(spec, DPO(), optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5))


def initial(folder, **settings):
    return ReferenceEnsemble([InitialPolicy()], cache_dir=str(folder / "tables"), **settings)


def validated(folder, module, **settings):
    """Return the metrics, the references' log-probs [K, rows, R] and the datamodule."""
    keep, datamodule = Keep(), make_datamodule(folder)
    trainer = make_trainer(folder, initial(folder, **settings), keep)
    (metrics,) = trainer.validate(module, datamodule, verbose=False)
    return metrics, keep.table(), datamodule


def assert_at_its_reference(metrics):
    """Hold an untrained policy to the closed form."""
    assert metrics["val/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics["val/margin"] == 0


@pytest.mark.parametrize("name", ["plain", "orthogonal", "pissa", "all biases", "dora", "tokens"])
def test_an_untrained_policy_is_its_reference_in_bfloat16_too(model, tmp_path, name):
    spec = PolicySpec(name=str(model), lora={**LORA, **STARTS[name]}, dtype="bfloat16")
    metrics, _, _ = validated(tmp_path, module_with(spec))
    assert_at_its_reference(metrics)


@pytest.mark.parametrize("name", STARTS)
def test_a_run_starts_at_its_reference_and_leaves_it_alone(model, tmp_path, name):
    spec = PolicySpec(name=str(model), lora={**LORA, **STARTS[name]})
    module = module_with(spec)
    metrics, before, datamodule = validated(tmp_path, module)
    assert_at_its_reference(metrics)
    if name in AS_THE_BASE:
        expected = scored_by(AutoModelForCausalLM.from_pretrained(model), datamodule)
        torch.testing.assert_close(before[0], expected, atol=2e-3, rtol=1e-4)
    trainer = make_trainer(tmp_path, initial(tmp_path), max_steps=2)
    trainer.fit(module, datamodule)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    moved = scored_by(module.policy, datamodule)
    assert (moved - before[0]).abs().max() > 0.1
    # Another process finds the start again, whatever its random numbers, and only then reads the checkpoint.
    torch.manual_seed(17)
    resumed, keep = module_with(spec), Keep()
    trainer = make_trainer(tmp_path, initial(tmp_path), keep)
    trainer.validate(resumed, datamodule, ckpt_path=str(tmp_path / "trained.ckpt"), verbose=False)
    torch.testing.assert_close(scored_by(resumed.policy, datamodule), moved, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(keep.table(), before, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "pissa", "all biases"])
def test_a_start_that_is_scored_beforehand_is_that_of_the_next_run(model, tmp_path, name):
    spec = PolicySpec(name=str(model), lora={**LORA, **STARTS[name]})
    metrics, table, datamodule = validated(tmp_path, module_with(spec), precompute=True)
    assert metrics["val/loss"] == pytest.approx(math.log(2), abs=1e-5)
    expected = scored_by(AutoModelForCausalLM.from_pretrained(model), datamodule)
    torch.testing.assert_close(table[0], expected, atol=2e-3, rtol=1e-4)
    # A run with a plain adapter finds no numbers of another start.
    metrics, table, _ = validated(
        tmp_path, module_with(PolicySpec(name=str(model), lora=LORA)), precompute=True
    )
    assert metrics["val/loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_tables_of_different_starts_have_different_names(model):
    names = {}
    for name, settings in STARTS.items():
        spec = PolicySpec(name=str(model), lora={**LORA, **settings})
        names.setdefault(InitialPolicy().fingerprint(spec), []).append(name)
    (plain,) = [found for found in names.values() if "plain" in found]
    assert set(plain) == {
        *("plain", "gaussian", "bias of the adapter", "whole modules", "tokens", "embeddings"),
        *("parameters", "rank-stabilised"),
    }
    assert all(len(found) == 1 for found in names.values() if found is not plain)
    dropout = PolicySpec(name=str(model), lora={**LORA, "use_dora": True, "lora_dropout": 0.1})
    assert InitialPolicy().fingerprint(dropout) in names


@pytest.mark.parametrize("name", ["plain", "random", "all biases", "dora", "whole modules", "tokens"])
def test_a_saved_adapter_is_its_own_reference(model, tmp_path, name):
    settings = {**LORA, **STARTS[name]}
    saved = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in saved.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    saved.save_pretrained(tmp_path / "adapter")
    spec = PolicySpec(name=str(model), adapter=str(tmp_path / "adapter"))
    module = module_with(spec)
    metrics, found, datamodule = validated(tmp_path, module)
    assert_at_its_reference(metrics)
    torch.testing.assert_close(found[0], scored_by(saved, datamodule), atol=2e-3, rtol=1e-4)
    make_trainer(tmp_path, initial(tmp_path), max_steps=2).fit(module, datamodule)
    assert (scored_by(module.policy, datamodule) - found[0]).abs().max() > 0.1
    _, again, _ = validated(tmp_path, module)
    assert torch.equal(again, found)
    frozen, _ = gather(tmp_path, module, ReferenceEnsemble([FrozenModel(spec)]))
    torch.testing.assert_close(frozen[0], found[0], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("settings", WRITTEN_TO.values(), ids=WRITTEN_TO)
def test_a_base_that_is_not_plain_is_no_reference_and_is_not_split(model, tmp_path, settings):
    spec = PolicySpec(name=str(model), lora={**LORA, **settings})
    build_policy(PolicySpec(name=str(model), lora=LORA)).save_pretrained(tmp_path / "plain")
    for member in (AdapterOff(), NamedAdapter(str(tmp_path / "plain"))):
        with pytest.raises(ContractError, match=r"needs the plain base .* use .*InitialPolicy"):
            member.check(spec)
    with pytest.raises(ConfigError, match="can't be sharded"):
        check_splittable(spec)


def test_saved_adapters_that_need_another_base_are_refused_before_weights_are_read(model, tmp_path):
    for name, settings in WRITTEN_TO.items():
        build_policy(PolicySpec(name=str(model), lora={**LORA, **settings})).save_pretrained(tmp_path / name)
    elsewhere = PolicySpec(name="nowhere", adapter=str(tmp_path / "pissa"))
    for build in (build_policy, build_frozen):
        with pytest.raises(ConfigError, match="initialised by 'pissa', which altered its base"):
            build(elsewhere)
    plain = PolicySpec(name=str(model), lora=LORA)
    with pytest.raises(ConfigError, match="initialised by 'pissa'"):
        NamedAdapter(str(tmp_path / "pissa")).check(plain)
    with pytest.raises(ContractError, match=r"changes the base that it would share .*FrozenModel"):
        NamedAdapter(str(tmp_path / "biases")).check(plain)
    with pytest.raises(ConfigError, match=r"no readable adapter_config\.json"):
        build_policy(PolicySpec(name="nowhere", adapter=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"init_lora_weights": "eva"}, "needs the activations of your data"),
        ({"init_lora_weights": "corda"}, "needs covariances"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "policy.four_bit"),
        ({"init_lora_weights": "lora_ga"}, "needs gradients"),
        ({"init_lora_weights": "mica"}, "freezes half of the adapter"),
        ({"init_lora_weights": "pizza"}, "to be one of true, false, gaussian"),
        ({"ensure_weight_tying": True}, "two parameters over the same memory"),
        ({"alora_invocation_tokens": [5]}, "laid out"),
        ({"use_qalora": True}, "GPTQ"),
        ({"megatron_config": {"a": 1}}, "megatron_config is not supported"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_settings_that_would_be_wrong_are_refused_at_once(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        PolicySpec(name="nowhere", lora={**LORA, **settings})


def test_what_settings_do_not_say_is_found_in_the_model(model, monkeypatch):
    """An initialisation that PEFT may get one day: the model itself shows what it does to the base."""
    spec = PolicySpec(name=str(model), lora=LORA)
    altering = dataclasses.replace(spec, lora={**LORA, "init_lora_weights": "pissa"})
    original = build_module.with_new_adapter
    monkeypatch.setattr(build_module, "with_new_adapter", lambda base, _: original(base, altering))
    with pytest.raises(ConfigError, match=r"changes or trains 'model.layers.0.self_attn.q_proj.weight'"):
        build_policy(spec)

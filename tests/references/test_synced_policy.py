"""A reference that is synchronised with the policy: averages of whole weights, and exact resumption."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.modules import DPOModule, TokenLevelModule
from pl_prefopt.objectives import DPO, TDPO2
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import InitialPolicy, SyncedPolicy
from pl_prefopt.references.synced import _stacked
from tests.callbacks.test_reference_ensemble import Keep, scored_by
from tests.runs import LORA, make_datamodule, make_trainer, pair_rows

POLICIES = {"adapter": {"lora": LORA}, "all weights": {}}


class Watch(Callback):
    """Keeps the policy's whole weights after every optimiser step, and saves a checkpoint after one of them.

    It comes before the references, so that its checkpoint is from between a step and their update.
    """

    def __init__(self, save_at=0, path=None):
        self.weights, self.losses, self.save_at, self.path = {}, [], save_at, path

    def on_train_start(self, trainer, module):
        self.weights[trainer.global_step] = whole_weights(module.policy)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        step = trainer.global_step
        if step not in self.weights:
            self.weights[step] = whole_weights(module.policy)
            if step == self.save_at:
                trainer.save_checkpoint(self.path)


def whole_weights(policy):
    """The weights of the plain model, float64, with the adapter's products added."""
    model = policy.get_base_model() if hasattr(policy, "peft_config") else policy
    found = {}
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        whole = weight.detach().double()
        if ".base_layer." in name:
            whole = whole + model.get_submodule(name.split(".base_layer.")[0]).get_delta_weight("default")
        found[name.replace(".base_layer", "")] = whole.clone()
    return found


def module_of(folder, policy, objective=None):
    kind = DPOModule if objective is None else TokenLevelModule
    return kind(
        PolicySpec(name=str(folder), **policy),
        objective or DPO(beta=0.5),
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5),
    )


def trained(
    folder, model, policy, reference, *, steps=6, watch=None, ckpt_path=None, objective=None, **settings
):
    """Train on pairs, one per batch; return the module, the trainer, what was watched and the datamodule."""
    watch, module = watch or Watch(), module_of(model, policy, objective)
    ensemble = ReferenceEnsemble([reference])
    trainer = make_trainer(
        folder, watch, ensemble, max_steps=steps, max_epochs=-1, limit_val_batches=0, **settings
    )
    datamodule = make_datamodule(folder, pair_rows(4), batch_size=1)
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=False)
    return module, trainer, watch, datamodule


def reference_sums(folder, module, reference, datamodule, **settings):
    """The reference's log-probs of all rows, in a validation."""
    keep = Keep()
    make_trainer(folder, keep, ReferenceEnsemble([reference])).validate(
        module, datamodule, verbose=False, **settings
    )
    return keep.table()[0]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("name", POLICIES)
def test_it_is_the_average_of_whole_weights(tiny_model, tmp_path, name, alpha):
    """With an adapter, too: of the products, not of the factors. Accumulation counts optimiser steps."""
    reference = SyncedPolicy(alpha, every=2)
    module, _, watch, datamodule = trained(
        tmp_path, tiny_model, POLICIES[name], reference, steps=7, accumulate_grad_batches=2
    )
    expected = watch.weights[0]
    for step in (2, 4, 6):
        now = watch.weights[step]
        expected = {key: alpha * now[key] + (1 - alpha) * before for key, before in expected.items()}
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    start = scored_by(model, datamodule)
    model.load_state_dict(expected, strict=False)
    sums = scored_by(model, datamodule)
    found = reference_sums(tmp_path, module, reference, datamodule)
    torch.testing.assert_close(found, sums, atol=1e-4, rtol=1e-5)
    assert (sums - start).abs().max() > 0.1
    assert (sums - scored_by(module.policy, datamodule)).abs().max() > 0.01, "the policy has gone on"
    for key, weight in whole_weights(module.policy).items():
        torch.testing.assert_close(weight, watch.weights[7][key], msg="the policy has its own weights")


def test_a_copy_at_every_step_is_the_policy_before_it(tiny_model, tmp_path):
    """Every loss is log 2; with a frozen reference it falls."""
    *_, watch, _ = trained(tmp_path, tiny_model, POLICIES["adapter"], SyncedPolicy(alpha=1.0, every=1))
    assert watch.losses == pytest.approx([math.log(2)] * 6, abs=1e-5)
    *_, watch, _ = trained(tmp_path, tiny_model, POLICIES["adapter"], InitialPolicy())
    assert min(watch.losses) < 0.68


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("save_at", [3, 4], ids=["between two updates", "before an update"])
def test_a_resumed_run_is_exact(tiny_model, tmp_path, name, save_at):
    path = str(tmp_path / "run.ckpt")
    watch = Watch(save_at, path)
    module, _, watch, datamodule = trained(
        tmp_path, tiny_model, POLICIES[name], reference := SyncedPolicy(0.3, every=2), watch=watch
    )
    _, trainer, again, _ = trained(
        tmp_path, tiny_model, POLICIES[name], other := SyncedPolicy(0.3, every=2), ckpt_path=path
    )
    saved = torch.load(path, weights_only=True)["pl_prefopt_references"]["0"]["step"]
    assert saved == save_at - 1, "the reference has not seen this step yet"
    for key, weight in watch.weights[6].items():
        assert torch.equal(weight, again.weights[6][key])
    assert again.losses == watch.losses[save_at:]
    assert all(torch.equal(one, other._weights[key]) for key, one in reference._weights.items())
    # A validation in another process finds the reference in the checkpoint.
    trainer.save_checkpoint(path)
    fresh = module_of(tiny_model, POLICIES[name])
    sums = reference_sums(tmp_path, fresh, SyncedPolicy(0.3, every=2), datamodule, ckpt_path=path)
    assert torch.equal(sums, reference_sums(tmp_path, module, reference, datamodule))


def test_its_tokens_and_divergences_are_those_of_its_weights(tiny_model, tmp_path):
    """TDPO2 with trained output embeddings: the weights are swapped within the policy's own pass."""
    objective = TDPO2(beta=0.5)
    *_, watch, _ = trained(
        tmp_path, tiny_model, {}, SyncedPolicy(alpha=1.0, every=1), objective=objective, steps=3
    )
    assert watch.losses == pytest.approx([math.log(2)] * 3, abs=1e-5)
    assert any(not torch.equal(weight, watch.weights[3][key]) for key, weight in watch.weights[0].items()), (
        "it trains"
    )


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_factors_are_stacked_up_to_the_size_of_the_layer(shape):
    numbers = torch.Generator().manual_seed(0)
    rows, columns = shape

    def factors():
        return (
            torch.randn(2, columns, generator=numbers, dtype=torch.float64),
            torch.randn(rows, 2, generator=numbers, dtype=torch.float64),
        )

    a, b = factors()[0], torch.zeros(rows, 2, dtype=torch.float64)
    expected, ranks = torch.zeros(shape, dtype=torch.float64), []
    for _ in range(4):
        now = factors()
        expected = 0.6 * now[1] @ now[0] + 0.4 * expected
        a, b = _stacked(now, (a, b), 0.6)
        ranks.append(len(a))
        torch.testing.assert_close(b @ a, expected)
    assert ranks == [2, 3, 3, 3]


def test_what_can_not_be_exact_is_refused(tiny_model, tmp_path):
    dora = {"lora": {**LORA, "use_dora": True}}
    embeddings = {"lora": {**LORA, "target_modules": ["embed_tokens", "q_proj"]}}
    for policy, ensemble, said in (
        (POLICIES["adapter"], ReferenceEnsemble([SyncedPolicy()], precompute=True), "precompute to false"),
        (dora, ReferenceEnsemble([SyncedPolicy()]), r"this adapter \(use_dora\).*alpha to 1"),
        (embeddings, ReferenceEnsemble([SyncedPolicy()]), r"this adapter \(Embedding, .*alpha to 1"),
    ):
        with pytest.raises(ContractError, match=said):
            make_trainer(tmp_path, ensemble, max_steps=1).fit(
                module_of(tiny_model, policy), make_datamodule(tmp_path, pair_rows(2))
            )
    sharded = SimpleNamespace(policy_spec=PolicySpec(name=str(tiny_model)), device_mesh=object())
    with pytest.raises(ContractError, match=r"can't follow a policy with sharded weights: use .* ddp"):
        ReferenceEnsemble([SyncedPolicy()]).setup(make_trainer(tmp_path), sharded, "fit")
    trained(tmp_path, tiny_model, dora, SyncedPolicy(alpha=1.0, every=1), steps=1)
    for settings, said in (
        ({"alpha": 0.0}, "`alpha` above 0 and at most 1, got 0.0"),
        ({"every": 0}, "`every` of at least 1 optimiser step, got 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            SyncedPolicy(**settings)


def test_a_checkpoint_of_other_references_is_refused(tiny_model, tmp_path):
    path, policy = str(tmp_path / "run.ckpt"), POLICIES["adapter"]
    for first, second, said in (
        (SyncedPolicy(every=1), InitialPolicy(), "holds a reference that follows the policy"),
        (
            InitialPolicy(),
            SyncedPolicy(every=1),
            "SyncedPolicy, which follows the policy, but the checkpoint",
        ),
    ):
        trained(tmp_path, tiny_model, policy, first, steps=1, watch=Watch(1, path))
        with pytest.raises(ConfigError, match=said):
            trained(tmp_path, tiny_model, policy, second, steps=2, ckpt_path=path)


def test_a_run_that_is_too_short_says_so(tiny_model, tmp_path):
    with pytest.warns(UserWarning, match="every 512 optimiser steps, but the run has 1, so that it never is"):
        trained(tmp_path, tiny_model, POLICIES["adapter"], SyncedPolicy(), steps=1)

"""Two models that choose each other's pairs: gradients, planted noise, the order of epochs."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.functional import review
from pl_prefopt.heads import FeatureHead, GroupHead
from pl_prefopt.modules import DPOModule, MetaRewardModule, PeerDPOModule, PeerRewardModule, RewardModule
from pl_prefopt.modules.peer_review import margins
from pl_prefopt.objectives import DPO, BradleyTerry, RewardClassification, RewardMixture
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, InitialPolicy, SyncedPolicy
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows

FAMILIES = {
    "rewards": (PeerRewardModule, RewardModule, BradleyTerry, ()),
    "implicit": (PeerDPOModule, DPOModule, DPO, (ReferenceEnsemble([AdapterOff()]),)),
}


class LooseHead(FeatureHead):
    """A linear reward of features that starts at random weights."""

    def build(self, hidden_size):
        super().build(hidden_size)
        nn.init.normal_(self.weights.weight)


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.5)


def trained(module):
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def test_models_that_keep_everything_are_trained_independently(tiny_model, tmp_path):
    reviewed, alone, objective, callbacks = FAMILIES["implicit"]
    data = make_datamodule(tmp_path, pair_rows(4))
    found = []
    for kind, settings in ((reviewed, {"keep_rate": 1.0, "curriculum": False}), (alone, {})):
        torch.manual_seed(0)
        module = kind(lora_spec(tiny_model), objective(), optimizer=sgd, **settings)
        make_trainer(tmp_path, *callbacks, limit_val_batches=0).fit(module, data)
        found.append(module)
    for name, weight in trained(found[1]).items():
        torch.testing.assert_close(trained(found[0])[name], weight)
    first, second = (trained(one) for one in (found[1], found[0].peer))
    assert not any(torch.equal(weight, second[name]) for name, weight in first.items() if "lora_A" in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_model_learns_from_what_the_other_one_keeps(tiny_model, tmp_path, family):
    kind, _, objective, callbacks = FAMILIES[family]
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.batch = batch

        def on_after_backward(self, trainer, module):
            if module.global_step < 2:  # adapters start at zero: let the policies differ first
                return
            models = (module, module.peer)
            scored = [model.score(self.batch) for model in models]
            outcomes = [module.objective(one) for one in scored]
            kept = review(*map(margins, scored, outcomes), keep_rate=0.5)
            seen.append(trainer.callback_metrics.get("train/kept_by_both"))
            for model, outcome, own in zip(models, outcomes, kept, strict=True):
                assert own.sum() == 2
                weights = (
                    list(trained(model).values())[:4]
                    if model is module.peer
                    else [weight for name, weight in trained(model).items() if not name.startswith("peer.")][
                        :4
                    ]
                )
                expected = torch.autograd.grad(outcome.loss[own].mean(), weights)
                for weight, gradient in zip(weights, expected, strict=True):
                    torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)
            seen.append(kept)

    module = kind(lora_spec(tiny_model), objective(), keep_rate=0.5, optimizer=sgd)
    data = make_datamodule(tmp_path, pair_rows(4), batch_size=4)
    make_trainer(tmp_path, Watch(), *callbacks, max_steps=3, max_epochs=3, limit_val_batches=0).fit(
        module, data
    )
    assert seen


def noisy_rows(count=48):
    """Pairs of which every third has the wrong label; two features say which response is better."""
    draws = torch.randn(count, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    worth = draws @ torch.tensor([2.0, -1.0], dtype=torch.float64)
    rows = []
    for number in range(count):
        better = int(worth[number].argmax())
        scores = [float(place == better) for place in range(2)]
        flipped = number % 3 == 0
        rows.append(
            {
                "prompt": f"Say {number}.",
                "responses": ["A quick brown one.", "Maybe."],
                "scores": scores[::-1] if flipped else scores,
                **{name: draws[number, :, place].tolist() for place, name in enumerate(("one", "two"))},
            }
        )
    return rows


def test_clean_pairs_are_kept_under_planted_noise_and_go_from_easy_to_hard(tiny_model, tmp_path, monkeypatch):
    rows, kept, order = noisy_rows(), [], []
    reviewed = PeerRewardModule._review

    def watched(self, batch, *given):
        kept.append(reviewed(self, batch, *given))
        order.append(batch.index)
        return kept[-1]

    monkeypatch.setattr(PeerRewardModule, "_review", watched)
    torch.manual_seed(0)
    module = PeerRewardModule(
        PolicySpec(name=str(tiny_model)),
        BradleyTerry(),
        keep_rate=0.6,
        warmup_epochs=1,
        reward_head=LooseHead(features=["one", "two"]),
        freeze_policy=True,
        states_dir=str(tmp_path / "states"),
        optimizer=lambda weights: torch.optim.Adam(weights, lr=0.2),
    )
    data = make_datamodule(tmp_path, rows, batch_size=12)
    make_trainer(tmp_path, max_epochs=6, limit_val_batches=0).fit(module, data)
    for side in (0, 1):
        chosen = torch.cat([index[one[side]] for index, (one, _) in zip(order[-4:], kept[-4:], strict=True)])
        assert len(chosen) == round(0.6 * 48)
        assert (chosen % 3 == 0).float().mean() < 1 / 6, "a third of all pairs are wrong"
    assert not torch.equal(module.heads["reward"].weights.weight, module.peer.heads["reward"].weights.weight)
    # The last epoch went through the rows by the mean margin that was measured before it.
    keys = torch.from_numpy(data.curriculum)
    places = torch.cat([keys[index].sort().values for index in order[-4:]])
    assert torch.equal(places, keys.sort().values)


def test_a_resumed_run_goes_on_in_the_order_of_its_epoch(tiny_model, tmp_path):
    data = make_datamodule(tmp_path, scored_rows(6))

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def fitted(*callbacks, **settings):
        torch.manual_seed(0)
        module = PeerRewardModule(lora_spec(tiny_model), BradleyTerry(), keep_rate=0.5, optimizer=sgd)
        make_trainer(tmp_path, *callbacks, max_epochs=3, limit_val_batches=0).fit(module, data, **settings)
        return trained(module)

    whole, resumed = fitted(Save()), fitted(ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_what_can_not_be_reviewed_is_refused(tiny_model, tmp_path):
    spec, rows = lora_spec(tiny_model), make_datamodule(tmp_path, pair_rows(2))
    with pytest.raises(ConfigError, match=r"`keep_rate` above 0 and at most 1, got 1\.5"):
        PeerRewardModule(spec, BradleyTerry(), keep_rate=1.5)
    with pytest.raises(ConfigError, match="PeerDPOModule adds no load-balancing loss"):
        PeerDPOModule(spec, DPO(), keep_rate=0.5, router_aux_loss_coef=0.1)
    with pytest.raises(ConfigError, match="can't train two GroupHeads"):
        PeerRewardModule(spec, RewardMixture(), keep_rate=0.5, reward_head=GroupHead(groups=2))
    with pytest.raises(ConfigError, match="a plan would count one: plan a run with RewardModule"):
        PeerRewardModule(spec, BradleyTerry(), keep_rate=0.5).sketch_policy()
    warm = PeerRewardModule(spec, BradleyTerry(), keep_rate=0.5, warmup_epochs=1)
    with pytest.raises(
        ConfigError, match=r"warmup_epochs, but trainer\.max_epochs is 1: set .* to 2 or more"
    ):
        make_trainer(tmp_path).fit(warm, rows)
    with pytest.raises(ConfigError, match="this one follows the policy"):
        make_trainer(tmp_path, ReferenceEnsemble([SyncedPolicy()])).fit(
            PeerDPOModule(spec, DPO(), keep_rate=0.5), rows
        )
    whole = PeerDPOModule(PolicySpec(name=str(tiny_model)), DPO(), keep_rate=0.5)
    with pytest.raises(ConfigError, match="would start with the same weights"):
        make_trainer(tmp_path, ReferenceEnsemble([InitialPolicy()])).fit(whole, rows)
    single = [{"prompt": f"Hi {label}", "completion": "Yes.", "label": label} for label in (True, False)]
    (tmp_path / "single").mkdir()
    with pytest.raises(ContractError, match="no train row has two responses with different scores"):
        make_trainer(tmp_path).fit(
            PeerRewardModule(spec, RewardClassification(), keep_rate=0.5),
            make_datamodule(tmp_path / "single", single),
        )
    limited = make_datamodule(tmp_path, pair_rows(2), max_tokens_per_batch=100)
    with pytest.raises(ConfigError, match=r"data\.max_tokens_per_batch needs the same batches"):
        make_trainer(tmp_path).fit(PeerRewardModule(spec, BradleyTerry(), keep_rate=0.5), limited)


@pytest.mark.parametrize("kind", [PeerRewardModule, MetaRewardModule])
def test_sharded_weights_are_refused(kind, monkeypatch):
    monkeypatch.setattr(kind, "device_mesh", object())
    with pytest.raises(ConfigError, match=f"{kind.__name__} .*use another strategy, such as ddp"):
        kind.setup(kind.__new__(kind), "fit")

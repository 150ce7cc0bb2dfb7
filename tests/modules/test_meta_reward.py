"""MetaRM's two-step gradient, by hand and against separate passes; what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from pl_prefopt.data import collate
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.functional import reward_spread
from pl_prefopt.heads import MixtureHead
from pl_prefopt.modules import MetaRewardModule, RewardModule
from pl_prefopt.modules.reward_outputs import read_outputs
from pl_prefopt.objectives import BradleyTerry, ContrastiveBradleyTerry, RewardMixture
from pl_prefopt.policies import PolicySpec
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows, write_rows


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.1)


def trained(module):
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


class Watch(Callback):
    """Keeps the weights before each batch, the batch, and the gradient."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.start = {name: weight.detach().clone() for name, weight in trained(module).items()}
        self.batch = batch

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for name, weight in trained(module).items():
            assert torch.equal(weight, self.start[name]), "the step is taken from where the weights were"
        slopes = {name: weight.grad.clone() for name, weight in trained(module).items()}
        self.seen.append((self.batch, self.start, slopes))


def test_a_linear_head_on_a_frozen_model_has_the_gradient_worked_by_hand(tiny_model, tmp_path):
    """r = w·h, so ∇J = σ′(u) sign(w·d) d with u = |w·d| for one pair of samples, and ∇L = −σ(−z) e."""
    samples = scored_rows(1)  # one prompt with two responses
    watch = Watch()
    module = MetaRewardModule(
        PolicySpec(name=str(tiny_model)),
        BradleyTerry(),
        samples=write_rows(tmp_path / "samples.jsonl", samples),
        meta_step=5.0,
        meta_batch_size=1,
        freeze_policy=True,
        states_dir=str(tmp_path / "states"),
        optimizer=sgd,
    )
    trainer = make_trainer(tmp_path, watch, max_steps=2, limit_val_batches=0)
    trainer.fit(module, make_datamodule(tmp_path, pair_rows(2), batch_size=1))
    (tmp_path / "other").mkdir()
    of_samples = make_datamodule(tmp_path / "other", samples)
    make_trainer(tmp_path).validate(module, of_samples, verbose=False)
    d = torch.subtract(*module._read_states(of_samples.datasets["val"].batch([0]))[0])
    for batch, start, slopes in watch.seen:
        first, second = module._read_states(batch)[0]
        e = first - second if batch.scores[0, 0] > batch.scores[0, 1] else second - first
        (weight,) = start.values()
        u = (weight[0] @ d).abs()
        moved = weight[0] + 5.0 * torch.sigmoid(u) * torch.sigmoid(-u) * (weight[0] @ d).sign() * d
        expected = -torch.sigmoid(-(moved @ e)) * e
        (slope,) = slopes.values()
        torch.testing.assert_close(slope[0], expected, rtol=1e-4, atol=1e-6)
        plain = -torch.sigmoid(-(weight[0] @ e)) * e
        assert not torch.allclose(slope[0], plain, rtol=1e-2)
    assert len(watch.seen) == 2
    assert 0.5 < trainer.callback_metrics["train/reward_spread"] < 1


class CachingPrecision(MixedPrecision):
    """Lightning's own doesn't keep the weights that autocast has cast, and torch's default does."""

    def autocast_context_manager(self):
        return torch.autocast(self.device, dtype=torch.bfloat16)


@pytest.mark.parametrize(("precision", "rounding"), [("32-true", 1e-3), ("bf16-mixed", 0.3)])
def test_adapter_and_head_move_for_the_loss_alone(tiny_model, tmp_path, precision, rounding):
    watch, plugins = Watch(), [CachingPrecision(precision, "cpu")] if precision == "bf16-mixed" else None
    module = MetaRewardModule(
        lora_spec(tiny_model),
        BradleyTerry(),
        samples=write_rows(tmp_path / "samples.jsonl", scored_rows(3)),
        meta_step=0.2,
        meta_batch_size=3,
        optimizer=sgd,
    )
    trainer = make_trainer(tmp_path, watch, max_steps=2, limit_val_batches=0, plugins=plugins)
    trainer.fit(module, make_datamodule(tmp_path, pair_rows(4)))
    batch, start, slopes = watch.seen[-1]
    weights = trained(module)

    def at(values, value):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(values[name])
        found = value()
        return dict(zip(weights, torch.autograd.grad(found, list(weights.values())), strict=True))

    def spread():
        tree = collate(module._encoded)
        rewards = read_outputs(module.scorer, module.policy, module.reward_head, tree, {}).squeeze(-1)
        return reward_spread(rewards, tree.response_mask.any(dim=-1)).mean()

    ascent = at(start, spread)
    moved = {name: value + 0.2 * ascent[name] for name, value in start.items()}
    expected = at(moved, lambda: module.objective(module.score(batch)).loss.mean())
    plain = at(start, lambda: module.objective(module.score(batch)).loss.mean())
    found, two_steps, one_step = (
        torch.cat([each[name].flatten() for name in slopes]) for each in (slopes, expected, plain)
    )
    assert (found - two_steps).norm() < rounding * (found - one_step).norm()


@pytest.mark.parametrize("hook", ["on_before_backward", "forward"])
def test_a_failed_step_leaves_the_weights_where_they_were(tiny_model, tmp_path, hook, monkeypatch):
    watch = Watch()

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    class Fail(Callback):
        def on_before_backward(self, trainer, module, loss):
            assert any(not torch.equal(each, watch.start[name]) for name, each in trained(module).items())
            fail()

    if hook == "forward":
        monkeypatch.setattr(RewardModule, "training_step", fail)
    module = MetaRewardModule(
        lora_spec(tiny_model),
        BradleyTerry(),
        samples=write_rows(tmp_path / "samples.jsonl", scored_rows(3)),
        meta_step=0.2,
        meta_batch_size=3,
    )
    trainer = make_trainer(tmp_path, watch, Fail(), max_steps=1, limit_val_batches=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(module, make_datamodule(tmp_path, pair_rows(4)))
    for name, weight in trained(module).items():
        assert torch.equal(weight, watch.start[name])


def test_what_can_not_take_two_steps_is_refused(tiny_model, tmp_path):
    def module(**settings):
        given = {"samples": write_rows(tmp_path / "samples.jsonl", scored_rows(2)), "meta_step": 0.1}
        given |= {"objective": BradleyTerry(), "meta_batch_size": 2, "policy": lora_spec(tiny_model)}
        return MetaRewardModule(**{**given, **settings})

    data = make_datamodule(tmp_path, pair_rows(2))
    with pytest.raises(ConfigError, match="meta_step"):
        module(meta_step=0.0)
    with pytest.raises(ConfigError, match=r"MixtureHead has 4 output\(s\) and reads no column"):
        module(objective=RewardMixture(), reward_head=MixtureHead(parts=2))
    with pytest.raises(ConfigError, match="a plan would leave out"):
        module().sketch_policy()
    with pytest.raises(DataError, match=r"meta_batch_size, 3, prompts in .*, got 2: add samples, or set it"):
        make_trainer(tmp_path).fit(module(meta_batch_size=3), data)
    single = write_rows(
        tmp_path / "single.jsonl", [{**scored_rows(1)[0], "responses": ["One."], "scores": [1]}]
    )
    with pytest.raises(DataError, match=r"at least two responses per prompt in .*, got 1 in row 1"):
        make_trainer(tmp_path).fit(module(samples=single, meta_batch_size=1), data)
    half = PolicySpec(name=str(tiny_model), dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"in torch\.bfloat16, in which small steps up J round to none"):
        make_trainer(tmp_path).fit(module(policy=half), data)


def test_contrasted_passes_differ_by_their_dropout(tiny_model, tmp_path):
    objective = ContrastiveBradleyTerry(contrastive_weight=1.0, temperature=0.5)
    data, seen = make_datamodule(tmp_path, pair_rows(4), batch_size=4), []
    plain = RewardModule(lora_spec(tiny_model), objective)
    with pytest.raises(ConfigError, match="different dropout, but the policy has none: set policy"):
        make_trainer(tmp_path).fit(plain, data)

    class Keep(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(module.score(batch))

    spec = lora_spec(tiny_model)
    spec = PolicySpec(name=spec.name, lora={**spec.lora, "lora_dropout": 0.5, "init_lora_weights": False})
    trainer = make_trainer(tmp_path, Keep(), max_steps=1, limit_val_batches=0)
    trainer.fit(RewardModule(spec, objective), data)
    (scored,) = seen
    one, two = scored.outputs["state"], scored.views["again"].outputs["state"]
    assert one.requires_grad
    assert two.requires_grad
    assert not torch.allclose(one, two, rtol=1e-2)
    loss, rewards = objective(scored).loss, scored.outputs["reward"].squeeze(-1)
    signs = torch.where(scored.scores[:, 0] > scored.scores[:, 1], 1.0, -1.0)
    margins = signs * (rewards[:, 0] - rewards[:, 1])
    units = [torch.nn.functional.normalize(each.flatten(0, 1), dim=-1) for each in (one, two)]
    expected = torch.nn.functional.softplus(-margins).clone()
    for number in range(8):
        similar = [float(units[0][number] @ other) / 0.5 for other in units[1]]
        expected[number // 2] += (math.log(sum(map(math.exp, similar))) - similar[number]) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)

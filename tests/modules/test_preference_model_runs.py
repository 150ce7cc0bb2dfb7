"""Preference models in runs: every shipped head trains, and groups of users are found between epochs."""

from __future__ import annotations

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from torch.nn.functional import logsigmoid

from pl_prefopt.data.formats import to_row
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.heads import DirectionHead, GroupHead, Head, IdealPointHead, MixtureHead
from pl_prefopt.modules import RewardModule
from pl_prefopt.modules.adapting import encode, save_adapted, state_pairs
from pl_prefopt.objectives import BradleyTerry, ConditionalBradleyTerry, Objective, RewardMixture
from tests.method_files import CONFIGS
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows

FILES = sorted(
    path.stem
    for path in (CONFIGS / "methods").glob("*.yaml")
    if "pl_prefopt.heads." in path.read_text()
    and "ScalarHead" not in path.read_text()
    and path.stem not in ("gpm_regression", "pal_a_hinge")  # other losses of the same heads
)


def rows_with_columns(count=6):
    """Pairs with a user, and a number per response for each feature and attribute."""
    names = ("coherence", "relevance", "helpfulness", "correctness", "complexity", "verbosity")
    return [
        {**row, "user": f"u{number % 3}"}
        | {name: [(number + place) % 5, place] for place, name in enumerate(names)}
        for number, row in enumerate(pair_rows(count))
    ]


def parts_of(name):
    """Objective and head of a file of configs/methods."""
    settings = yaml.safe_load((CONFIGS / "methods" / f"{name}.yaml").read_text())["model"]["init_args"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    parser.add_subclass_arguments(Head, "reward_head")
    found = parser.instantiate(parser.parse_object(settings))
    return found.objective, found.reward_head


class Slopes(Callback):
    """Keeps the size of each gradient of the head."""

    def __init__(self):
        self.found = {}

    def on_after_backward(self, trainer, module):
        self.found = {name: w.grad.abs().max().item() for name, w in module.reward_head.named_parameters()}


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_head_trains_on_its_rows(tiny_model, tmp_path, name):
    torch.manual_seed(0)
    objective, head = parts_of(name)
    slopes = Slopes()
    trainer = make_trainer(tmp_path, slopes, max_steps=1, max_epochs=-1)
    trainer.fit(
        RewardModule(lora_spec(tiny_model), objective, reward_head=head),
        make_datamodule(tmp_path, rows_with_columns(), batch_size=6),
    )
    assert slopes.found
    assert all(0 < slope < float("inf") for slope in slopes.found.values()), slopes.found
    assert trainer.callback_metrics["val/loss"].isfinite()


def test_groups_move_to_what_explains_their_pairs_and_a_resumed_run_goes_on(tiny_model, tmp_path):
    rows = [{**row, "user": number % 4} for number, row in enumerate(pair_rows(8))]
    data = make_datamodule(tmp_path, rows, batch_size=4)
    seen = []

    class Watched(GroupHead):
        def assign(self, likelihoods, pairs):
            seen.append((likelihoods.clone(), pairs.clone(), super().assign(likelihoods, pairs)))
            return seen[-1][-1]

    def fitted(epochs, max_steps=-1, **settings):
        torch.manual_seed(0)
        module = RewardModule(
            lora_spec(tiny_model), RewardMixture(router_entropy=0.0), reward_head=Watched(groups=2)
        )
        trainer = make_trainer(tmp_path, max_epochs=epochs, max_steps=max_steps, limit_val_batches=0)
        trainer.fit(module, data, **settings)
        return module, trainer

    with pytest.raises(
        ConfigError, match=r"every epoch except the first, but trainer\.max_epochs is 1: set .* to 2 or more"
    ):
        fitted(1)
    first, trainer = fitted(-1, max_steps=2)
    assert not seen, "the first epoch keeps the first assignment"
    assert first.reward_head.assigned.tolist() == [0, 1, 0, 1]
    with torch.no_grad():
        first.eval()
        batch = first.score(data.datasets["train"].batch(range(8)))
    better = torch.where(batch.scores[:, :1] == 1, 1.0, -1.0)
    rewards = batch.outputs["reward"][..., :2]
    expected = logsigmoid(better * (rewards[:, 0] - rewards[:, 1]))
    expected = torch.stack([expected[user::4].sum(dim=0) for user in range(4)])

    whole, trainer = fitted(3)
    torch.testing.assert_close(seen[0][0].float(), expected, rtol=1e-4, atol=1e-4)
    assert seen[0][1].tolist() == [2, 2, 2, 2]
    assert len(seen) == 2
    second, trainer = fitted(2)
    assert second.reward_head.assigned.tolist() != [0, 1, 0, 1]
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fitted(3, ckpt_path=tmp_path / "half.ckpt")
    predicting = RewardModule(
        lora_spec(tiny_model), RewardMixture(router_entropy=0.0), reward_head=Watched(groups=2)
    )
    make_trainer(tmp_path).validate(predicting, data, ckpt_path=tmp_path / "half.ckpt", verbose=False)
    loaded = RewardModule.load_from_checkpoint(
        tmp_path / "half.ckpt",
        policy=lora_spec(tiny_model),
        objective=RewardMixture(router_entropy=0.0),
        reward_head=Watched(groups=2),
    )
    for one in (predicting, loaded):
        assert torch.equal(one.reward_head.assigned, second.reward_head.assigned)
        assert one.reward_head.learned == {"users": [0, 1, 2, 3]}
    for key, value in whole.heads["reward"].state_dict().items():
        assert torch.equal(value, resumed.heads["reward"].state_dict()[key]), key
    (tmp_path / "strangers").mkdir()
    strangers = make_datamodule(tmp_path / "strangers", [{**rows[0], "user": 9}])
    with pytest.raises(DataError, match=r"got 9 in .*: add the user first with `prefopt adapt`"):
        make_trainer(tmp_path).validate(resumed, strangers, verbose=False)


def test_a_response_is_scored_under_two_prompts_with_gradients_through_both(tiny_model, tmp_path):
    rows = [{**row, "prompt_rejected": f"Else {number}?"} for number, row in enumerate(pair_rows(3))]
    module = RewardModule(lora_spec(tiny_model), ConditionalBradleyTerry())
    data = make_datamodule(tmp_path, rows, batch_size=3)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    others = [{**row, "prompt": f"Else {number}?"} for number, row in enumerate(pair_rows(3))]
    plain = make_datamodule(tmp_path, others, batch_size=3)
    batch = module.score(data.datasets["train"].batch(range(3)))
    other = batch.views["contrast"].outputs["reward"]
    assert other.requires_grad
    again = RewardModule(lora_spec(tiny_model), BradleyTerry())
    make_trainer(tmp_path).validate(again, plain, verbose=False)
    again.load_state_dict(module.state_dict(), strict=False)  # adapter and head
    expected = again.score(plain.datasets["val"].batch(range(3))).outputs["reward"]
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)
    outcome = module.objective(batch)
    margins = (batch.outputs["reward"] - other).squeeze(-1)
    torch.testing.assert_close(outcome.loss, -logsigmoid(margins).mean(dim=1))


def test_a_scale_that_fsdp2_can_not_shard_is_refused_before_the_model_loads(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(RewardModule, "device_mesh", object())
    monkeypatch.setattr("pl_prefopt.modules.base.check_shardable", lambda *_: None)
    head = DirectionHead(prototypes=2, dimensions=4)
    module = RewardModule(lora_spec(tiny_model), BradleyTerry(), reward_head=head)
    with pytest.raises(ConfigError, match="has a single number, 'log_scale', which FSDP2 can't shard"):
        make_trainer(tmp_path).fit(module, make_datamodule(tmp_path, rows_with_columns()))
    assert not hasattr(module, "policy")


def test_a_new_user_is_fitted_to_the_states_of_an_evaluation_and_predicted(tiny_model, tmp_path):
    """PAL under bf16: the weights minimise the loss of the rewards that a validation computes."""
    rows = [{**row, "user": number % 2} for number, row in enumerate(pair_rows(4))]
    settings = {"max_response_length": 8, "eval_batch_size": 4}
    data = make_datamodule(tmp_path, rows, batch_size=4, **settings)

    def module(head, **options):
        return RewardModule(lora_spec(tiny_model), BradleyTerry(), reward_head=head, **options)

    trained = module(IdealPointHead(prototypes=2, dimensions=4))
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0, precision="bf16-mixed")
    trainer.fit(trained, data)
    trainer.save_checkpoint(tmp_path / "known.ckpt")
    loaded = RewardModule.load_from_checkpoint(
        tmp_path / "known.ckpt",
        policy=lora_spec(tiny_model),
        objective=BradleyTerry(),
        reward_head=IdealPointHead(prototypes=2, dimensions=4),
    )
    given = [to_row({**row, "user": 7}) for row in rows]
    with pytest.raises(DataError, match=r"of 8 given responses are truncated by data\.max_response_length"):
        encode(given, data.renderer, "refuse")
    with pytest.warns(UserWarning, match="given responses are truncated"):
        encoded = encode(given, data.renderer, "warn")
    pairs = state_pairs(loaded, given, encoded, trainer.precision_plugin)
    assert loaded.reward_head.adapt(pairs, None)[0].startswith("user 7: weights ")
    save_adapted(tmp_path / "known.ckpt", loaded, tmp_path / "more.ckpt")

    (tmp_path / "new").mkdir()
    new = make_datamodule(tmp_path / "new", [{**row, "user": 7} for row in rows], **settings)
    again = module(IdealPointHead(prototypes=2, dimensions=4))
    evaluating = make_trainer(tmp_path, precision="bf16-mixed")
    ((scored, outcome),) = evaluating.predict(again, new, ckpt_path=tmp_path / "more.ckpt")
    head = again.reward_head
    assert head.learned == {"users": [0, 1, 7]}
    worth = torch.where(scored.scores[:, 0] > scored.scores[:, 1], 1.0, -1.0)
    states = pairs.chosen, pairs.rejected
    own = head.rewards(*states[:1], None, head.user_logits[2:].softmax(-1).expand(4, -1))
    other = head.rewards(*states[1:], None, head.user_logits[2:].softmax(-1).expand(4, -1))
    found = worth * (outcome.reward[:, 0] - outcome.reward[:, 1])
    torch.testing.assert_close((own - other).sort().values, found.sort().values, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_a_context_takes_that_of_an_earlier_one_away(tiny_model, tmp_path):
    torch.manual_seed(0)
    data = make_datamodule(tmp_path, pair_rows(4), batch_size=4)
    module = RewardModule(lora_spec(tiny_model), RewardMixture(), reward_head=MixtureHead(parts=2))
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    module.reward_head.learned = {"context": [-1e-4, -9.2]}
    save_adapted(tmp_path / "plain.ckpt", module, tmp_path / "context.ckpt")
    module.reward_head.learned = {}

    def loss(name):
        found = make_trainer(tmp_path).validate(module, data, ckpt_path=tmp_path / name, verbose=False)
        return found[0]["val/loss"]

    first = loss("plain.ckpt")
    assert loss("context.ckpt") != pytest.approx(first, rel=1e-3)
    with pytest.raises(ConfigError, match="the router would not be trained: start from the checkpoint that"):
        make_trainer(tmp_path).fit(module, data)
    assert loss("plain.ckpt") == pytest.approx(first)

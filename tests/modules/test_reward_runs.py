"""Reward models in runs: what heads read, against plain transformers on single rows."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.heads import EmbeddingHead, Head, ScalarHead
from pl_prefopt.modules import DPOModule, ReferenceFreeModule, RewardModule
from pl_prefopt.objectives import (
    DPO,
    GPM,
    BradleyTerry,
    Compose,
    HeadReward,
    NegativeLogLikelihood,
    RewardMixture,
    RewardRegression,
)
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import InitialPolicy
from pl_prefopt.scoring import base_model
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows


class Keep(Callback):
    """Keeps what the objective was given and what it returned."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append((batch, *outputs))


class PromptGate(Head):
    """Two outputs: last and prompt states times a weight, and a column."""

    outputs = 2
    reads_prompt = True
    columns = ("weight",)

    def build(self, hidden_size):
        self.gate = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, last, prompt, columns):
        return torch.cat([self.gate(last * prompt), columns["weight"].to(last).unsqueeze(-1)], dim=-1)


class FirstOutput(BradleyTerry):
    """Bradley-Terry on the first of two outputs."""

    @property
    def needs(self):
        import dataclasses

        return dataclasses.replace(super().needs, reward_outputs=2)

    def forward(self, batch):
        import dataclasses

        return super().forward(
            dataclasses.replace(batch, outputs={"reward": batch.outputs["reward"][..., :1]})
        )


def end_states(policy, tree, row, number):
    """The last hidden states of a single row at the end of its response, and of its prompt."""
    prompt = tree.prompt_ids[row, : tree.prompt_lengths[row]]
    response = tree.response_ids[row, number, : tree.response_sizes[row][number]]
    with torch.no_grad():
        found = base_model(policy)(
            input_ids=torch.cat([prompt, response])[None], output_hidden_states=True
        ).hidden_states[-1][0]
    return found[-1], found[len(prompt) - 1]


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_rewards_are_those_of_single_rows(tiny_model, tmp_path, layout):
    module, keep = RewardModule(lora_spec(tiny_model), BradleyTerry(), layout=layout), Keep()
    trainer = make_trainer(tmp_path, keep, max_steps=3)
    trainer.fit(module, make_datamodule(tmp_path, scored_rows(6), batch_size=3))
    weight = module.heads["reward"].score.weight[0]
    for batch, scored, outcome in keep.seen:
        tree = batch.trees["plain"]
        assert scored.policy.sum.isnan().all()
        for row, number in batch.present.nonzero().tolist():
            last, _ = end_states(module.policy, tree, row, number)
            assert outcome.reward[row, number].item() == pytest.approx((weight @ last).item(), abs=1e-5)
    assert sum(len(batch) for batch, *_ in keep.seen) == 6


def test_the_forward_pass_computes_no_logits_and_trains_no_output_embeddings(tiny_model, tmp_path):
    module = RewardModule(PolicySpec(name=str(tiny_model)), BradleyTerry())
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    called = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:  # the first one has the probe of the model
                module.policy.lm_head.register_forward_hook(lambda *_: called.append(1))

        def on_after_backward(self, trainer, module):
            missing = [name for name, w in module.named_parameters() if w.requires_grad and w.grad is None]
            assert not missing

    trainer = make_trainer(tmp_path, Watch(), max_steps=2, limit_val_batches=0)
    trainer.fit(module, make_datamodule(tmp_path))
    assert not called
    assert not module.policy.lm_head.weight.requires_grad
    assert module.policy.model.embed_tokens.weight.requires_grad


def test_a_head_reads_prompts_and_columns(tiny_model, tmp_path):
    rows = [{**row, "weight": float(number)} for number, row in enumerate(scored_rows(4))]
    module, keep = RewardModule(lora_spec(tiny_model), FirstOutput(), reward_head=PromptGate()), Keep()
    trainer = make_trainer(tmp_path, keep)
    trainer.validate(module, make_datamodule(tmp_path, rows, batch_size=4), verbose=False)
    ((batch, scored, _),) = keep.seen
    outputs, gate = scored.outputs["reward"], module.heads["reward"].gate.weight[0]
    assert outputs.shape == (4, 4, 2)
    assert (outputs[~batch.present] == 0).all()
    for row, number in batch.present.nonzero().tolist():
        last, prompt = end_states(module.policy, batch.trees["plain"], row, number)
        assert outputs[row, number, 0].item() == pytest.approx((gate @ (last * prompt)).item(), abs=1e-5)
        assert outputs[row, number, 1] == batch.index[row]
    with pytest.raises(ContractError, match="PromptGate needs the column 'weight'"):
        make_trainer(tmp_path).validate(
            RewardModule(lora_spec(tiny_model), FirstOutput(), reward_head=PromptGate()),
            make_datamodule(tmp_path, scored_rows(2)),
        )


def test_a_term_of_log_probs_is_computed_along_with_rewards(tiny_model, tmp_path):
    rows, keep = pair_rows(3), Keep()
    objective = Compose(score=HeadReward(), terms=[NegativeLogLikelihood(0.5)])
    module = RewardModule(lora_spec(tiny_model), objective)
    (found,) = make_trainer(tmp_path, keep).validate(
        module, make_datamodule(tmp_path, rows, batch_size=3), verbose=False
    )
    ((batch, scored, outcome),) = keep.seen
    margins = torch.where(batch.scores == 1, outcome.reward, -outcome.reward).sum(dim=1)
    nll = -torch.where(batch.scores == 1, scored.policy.mean, 0.0).sum(dim=1)
    torch.testing.assert_close(outcome.loss, torch.log1p(torch.exp(-margins)) + 0.5 * nll)
    assert "val/ranking_accuracy" in found


def test_metrics_of_log_probs_are_left_out(tiny_model, tmp_path):
    module = RewardModule(lora_spec(tiny_model), BradleyTerry())
    (found,) = make_trainer(tmp_path).test(module, make_datamodule(tmp_path), verbose=False)
    assert {"test/accuracy", "test/margin", "test/length_bias", "test/accuracy_low"} <= found.keys()
    assert not {"test/ranking_accuracy", "test/chosen_logp", "test/likelihood_best"} & found.keys()
    assert all(math.isfinite(value) for value in found.values())


def test_rewards_stay_in_float32_in_half_precision(tiny_model, tmp_path):
    for precision in ("bf16-mixed", "bf16-true"):
        module, keep = RewardModule(lora_spec(tiny_model), BradleyTerry()), Keep()
        trainer = make_trainer(tmp_path, keep, precision=precision, max_epochs=1)
        trainer.fit(module, make_datamodule(tmp_path))
        assert module.heads["reward"].score.weight.dtype == torch.float32
        rewards = torch.cat([outcome.reward.flatten() for *_, outcome in keep.seen])
        assert rewards.dtype == torch.float32
        assert (rewards.bfloat16().float() != rewards).any()


def test_what_does_not_go_together_is_refused(tiny_model, tmp_path):
    spec, rows = lora_spec(tiny_model), make_datamodule(tmp_path, pair_rows(2))
    for module, callbacks, said in (
        (RewardModule(spec, DPO()), (), "DPO reads none: use an objective on rewards"),
        (DPOModule(spec, BradleyTerry()), (), "model.class_path to pl_prefopt.modules.RewardModule"),
        (ReferenceFreeModule(spec, Compose(score=HeadReward())), (), "reads the rewards of a head"),
        (RewardModule(spec, GPM()), (), "a reward head that gives an embedding .*, but .* gives rewards"),
        (
            RewardModule(spec, RewardMixture(), EmbeddingHead()),
            (),
            "gives rewards and log-weights .*, but .* gives an embedding",
        ),
        (
            RewardModule(spec, FirstOutput()),
            (),
            r"needs a reward head with 2 output\(s\) per response, but .* has 1",
        ),
        (
            RewardModule(spec, BradleyTerry()),
            (ReferenceEnsemble([InitialPolicy()]),),
            r"needs exactly 0 reference\(s\)",
        ),
    ):
        with pytest.raises(ContractError, match=said):
            make_trainer(tmp_path, *callbacks).validate(module, rows, verbose=False)
    with pytest.raises(DataError, match="whose differences mean something"):
        make_trainer(tmp_path).fit(RewardModule(spec, RewardRegression()), rows)


def test_truncated_responses_are_counted_or_refused(tiny_model, tmp_path):
    rows = make_datamodule(tmp_path, pair_rows(2), max_response_length=4)
    said = r"3 of 4 val responses are truncated by data.max_response_length and have no end token"
    with pytest.warns(UserWarning, match=said):
        make_trainer(tmp_path).validate(RewardModule(lora_spec(tiny_model), BradleyTerry()), rows)
    module = RewardModule(lora_spec(tiny_model), BradleyTerry(), truncated_responses="refuse")
    with pytest.raises(DataError, match=said):
        make_trainer(tmp_path).validate(module, rows, verbose=False)


def test_a_checkpoint_is_resumed_and_refused_by_another_head(tiny_model, tmp_path):
    class TwiceHead(ScalarHead):
        """Another head with weights of the same shape."""

    def fitted(epochs, **settings):
        torch.manual_seed(0)  # for the weights of adapter and head
        module = RewardModule(lora_spec(tiny_model), BradleyTerry())
        trainer = make_trainer(tmp_path, max_epochs=epochs, limit_val_batches=0)
        trainer.fit(module, data, **settings)
        return module, trainer

    data = make_datamodule(tmp_path, scored_rows(4))
    (first, trainer), (whole, _) = fitted(1), fitted(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, _ = fitted(2, ckpt_path=tmp_path / "half.ckpt")
    one, two, three = (each.heads["reward"].score.weight for each in (first, whole, second))
    assert not torch.equal(one, two)
    assert torch.equal(two, three)
    other = RewardModule(lora_spec(tiny_model), BradleyTerry(), reward_head=TwiceHead())
    with pytest.raises(ConfigError, match=r"made with model.reward_head .*ScalarHead.* has .*TwiceHead"):
        make_trainer(tmp_path).validate(other, data, ckpt_path=tmp_path / "half.ckpt")


def test_a_frozen_policy_is_run_once_per_row(tiny_model, tmp_path):
    rows = [{**row, "weight": float(number)} for number, row in enumerate(scored_rows(4))]
    runs = []

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            module.policy.model.register_forward_hook(lambda *_: runs.append(1))

    def fitted():
        torch.manual_seed(0)
        keep, head = Keep(), PromptGate()
        module = RewardModule(
            PolicySpec(name=str(tiny_model)),
            FirstOutput(),
            reward_head=head,
            freeze_policy=True,
            states_dir=str(tmp_path / "states"),
            optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1),
        )
        trainer = make_trainer(tmp_path, keep, Watch(), max_epochs=2)
        trainer.fit(module, make_datamodule(tmp_path, rows, batch_size=2))
        return module, keep.seen[-2:]

    first, seen = fitted()
    assert runs
    assert [name for name, weight in first.named_parameters() if weight.requires_grad] == [
        "heads.reward.gate.weight"
    ]
    gate = first.heads["reward"].gate.weight[0]
    for batch, scored, _ in seen:
        for row, number in batch.present.nonzero().tolist():
            last, prompt = end_states(first.policy, batch.trees["plain"], row, number)
            found = scored.outputs["reward"][row, number, 0].item()
            assert found == pytest.approx((gate @ (last * prompt)).item(), abs=1e-5)
    runs.clear()
    second, _ = fitted()
    assert not runs, "the second run reads the tables"
    assert torch.equal(second.heads["reward"].gate.weight[0], gate)
    for module, said in (
        (
            lambda: RewardModule(lora_spec(tiny_model), BradleyTerry(), freeze_policy=True),
            "set policy.lora to",
        ),
        (
            lambda: RewardModule(
                PolicySpec(name=str(tiny_model)),
                Compose(score=HeadReward(), terms=[NegativeLogLikelihood(0.5)]),
                freeze_policy=True,
            ),
            "Compose reads more: set freeze_policy to false",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            module()

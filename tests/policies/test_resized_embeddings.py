"""Tokens that the model has no embedding for: rows are added, trained, saved and exported."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.cli.export import export_policy
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec, build_frozen, build_policy, sketch_policy
from pl_prefopt.references import AdapterOff
from tests.adapters import save_run, save_tied_model
from tests.runs import LORA, lora_spec, make_datamodule, make_trainer, pair_rows
from tests.support import tiny_tokenizer

KNOWN, SIZE = 400, 403
OLD, NEW = torch.arange(5, 395).reshape(10, 39), torch.tensor([[7, 400, 9, 401, 402, 11]])


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory):
    """A model whose embeddings are tied, and one whose are not."""
    return {"tied": save_tied_model(tmp_path_factory.mktemp("tied")), "untied": tiny_model}


def spec_of(models, kind, **settings):
    return PolicySpec(name=str(models[kind]), resize_embeddings=SIZE, **settings)


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize(("kind", "lora"), [("tied", LORA), ("untied", None)])
def test_new_rows_start_as_the_mean_and_the_others_stay(models, kind, lora):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    policy = build_policy(spec_of(models, kind, lora=lora))
    assert lora is not None or torch.equal(torch.random.get_rng_state(), state)
    plain = AutoModelForCausalLM.from_pretrained(models[kind])
    table = build_frozen(spec_of(models, kind)).get_input_embeddings().weight
    torch.testing.assert_close(table[:KNOWN], plain.get_input_embeddings().weight)
    torch.testing.assert_close(table[KNOWN:], table[:KNOWN].mean(0).expand(3, -1))
    torch.testing.assert_close(logits(policy, OLD)[..., :KNOWN], logits(plain, OLD))
    mean = logits(plain, OLD).mean(-1, keepdim=True)  # logits are linear in the rows
    torch.testing.assert_close(logits(policy, OLD)[..., KNOWN:], mean.expand(-1, -1, 3), atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(policy, NEW), logits(build_frozen(spec_of(models, kind)), NEW))


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_an_adapter_trains_the_new_rows_alone(models, kind):
    policy = build_policy(spec_of(models, kind, lora={"r": 2, "target_modules": ["q_proj"]}))
    before = logits(policy, OLD)
    weights = [
        weight for name, weight in policy.named_parameters() if weight.requires_grad and "token" in name
    ]
    assert sum(len(weight) for weight in weights) == (3 if kind == "tied" else 6)
    policy.train()(input_ids=NEW).logits.log_softmax(-1)[..., 400].sum().backward()
    with torch.no_grad():
        for weight in weights:
            assert weight.grad.abs().sum() > 0
            weight -= 0.5 * weight.grad
    after = logits(policy, OLD)
    torch.testing.assert_close(after[..., :KNOWN], before[..., :KNOWN])
    assert (after[..., KNOWN:] - before[..., KNOWN:]).abs().max() > 1e-3
    with policy.disable_adapter():
        assert torch.equal(logits(policy, NEW), logits(build_frozen(spec_of(models, kind)), NEW))


@pytest.mark.parametrize(("kind", "lora"), [("tied", LORA), ("untied", None)])
def test_the_export_of_a_run_knows_the_new_tokens(models, kind, lora, tmp_path):
    checkpoint, policy = save_run(tmp_path / "run", spec_of(models, kind, lora=lora))
    if lora is not None:
        with pytest.raises(ConfigError, match=r"An adapter alone can't be exported .* use --merge true"):
            export_policy(checkpoint, tmp_path / "adapter", merge=False)
    export_policy(checkpoint, tmp_path / "out", merge=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.vocab_size == SIZE
    for ids in (OLD, NEW):
        torch.testing.assert_close(logits(again, ids), logits(policy, ids), atol=1e-4, rtol=1e-4)


def test_settings_that_do_not_go_together_are_refused(models):
    with pytest.raises(ConfigError, match=r"policy.resize_embeddings to be above the 400 tokens .* got 400"):
        build_policy(PolicySpec(name=str(models["untied"]), resize_embeddings=400))
    with pytest.raises(ConfigError, match=r"resize_embeddings and policy.adapter exclude each other"):
        PolicySpec(name="x", adapter="y", resize_embeddings=401)
    with pytest.raises(ConfigError, match=r"remove policy.lora.trainable_token_indices"):
        build_policy(spec_of(models, "untied", lora={**LORA, "trainable_token_indices": [5]}))


def test_the_base_is_another_one_and_a_sketch_has_its_shapes(models):
    plain, resized = PolicySpec(name=str(models["tied"])), spec_of(models, "tied", lora=LORA)
    assert plain.base_identity != resized.base_identity
    assert plain.fingerprint != resized.fingerprint
    shapes = [
        {name: weight.shape for name, weight in make(resized).named_parameters()}
        for make in (build_policy, sketch_policy)
    ]
    assert shapes[0] == shapes[1]


def test_a_token_without_an_embedding_is_told_with_the_setting(models):
    class Tokenizer:
        def convert_ids_to_tokens(self, token):
            return "<new>"

        def __len__(self):
            return 402

    said = (
        r"the token 401 \('<new>'\), but .* for only 400 tokens: .* set policy.resize_embeddings: 402 to add"
    )
    with pytest.raises(ConfigError, match=said):
        PolicySpec(name=str(models["untied"])).check_token(401, Tokenizer())
    spec_of(models, "untied").check_token(401, Tokenizer())


def test_a_run_on_new_tokens_trains_and_resumes(tmp_path):
    folder = save_tied_model(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<call>", "<result>"])
    tokenizer.save_pretrained(folder)
    rows = [row | {"chosen": f"<call>{row['chosen']}"} for row in pair_rows(4)]

    def fitted(epochs, ckpt_path=None, **settings):
        torch.manual_seed(0)
        spec = lora_spec(folder, **settings)
        module = DPOModule(spec, DPO(), optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5))
        trainer = make_trainer(
            tmp_path, ReferenceEnsemble([AdapterOff()]), max_epochs=epochs, limit_val_batches=0
        )
        trainer.fit(module, make_datamodule(tmp_path, rows), ckpt_path=ckpt_path, weights_only=False)
        return trainer, module.state_dict()

    with pytest.raises(
        ConfigError, match=r"embeddings for only 400 tokens: .* policy.resize_embeddings: 402"
    ):
        fitted(1)
    trainer, first = fitted(1, resize_embeddings=402)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    _, resumed = fitted(2, tmp_path / "a.ckpt", resize_embeddings=402)
    _, whole = fitted(2, resize_embeddings=402)
    (name,) = (name for name in whole if "trainable_tokens" in name and whole[name].any())
    assert not torch.equal(first[name][0], first[name][1])  # the rows have <call> alone
    for key, weight in whole.items():
        assert torch.equal(weight, resumed[key]), key

"""The load-balancing loss of mixtures of experts against that of transformers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from lightning.pytorch import Callback

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff
from pl_prefopt.scoring import LogProbs, Scorer
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows
from tests.scoring.architectures import _GROUPED, build
from tests.scoring.test_scorer import ragged_tree
from tests.support import tiny_tokenizer

EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}
CONFIGS = {
    "mixtral": transformers.MixtralConfig(**_GROUPED, num_local_experts=4, **EXPERTS),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **_GROUPED, head_dim=8, moe_intermediate_size=16, num_experts=4, **EXPERTS
    ),
    "olmoe": transformers.OlmoeConfig(**_GROUPED, num_experts=4, **EXPERTS),
}


def of_transformers(model, tree):
    """The loss of one padded row per response, with an attention mask."""
    rows = []
    for b, r in tree.response_mask.any(dim=2).nonzero().tolist():
        prompt, response = tree.prompt_mask[b], tree.response_mask[b, r]
        rows.append(torch.cat([tree.prompt_ids[b][prompt], tree.response_ids[b, r][response]]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss


def routers(model):
    return {name: weight for name, weight in model.named_parameters() if ".gate.weight" in name}


@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_and_its_gradient_are_those_of_one_row_per_response(name, layout):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    # Prompts of other lengths, a prefix that all share, responses that are absent, and padding.
    tree = ragged_tree([5, 3, 4], [[2, 3, 1], [1, 4], [3]], common=2)
    weights = list(routers(model).values())
    expected = of_transformers(model, tree)
    gradients = torch.autograd.grad(expected, weights)
    everything = torch.ones(3, dtype=torch.bool)
    (log_probs,), found = Scorer(layout).read_balanced(model, tree, [LogProbs()], counted=everything)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, weights, retain_graph=True), gradients)
    torch.testing.assert_close(log_probs, Scorer("plain").read(model, tree, [LogProbs()])[0])


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_rows_that_even_out_the_ranks_do_not_count(layout):
    torch.manual_seed(0)
    model, scorer = transformers.AutoModelForCausalLM.from_config(CONFIGS["olmoe"]).eval(), Scorer(layout)
    tree = ragged_tree([5, 3, 4], [[2, 3, 1], [1, 4], [3]], common=2)
    real = dataclasses.replace(tree, response_mask=tree.response_mask & (torch.arange(3) != 1).view(3, 1, 1))

    def loss(*counted):
        return scorer.read_balanced(model, tree, [LogProbs()], counted=torch.tensor(counted))[1]

    torch.testing.assert_close(loss(True, False, True), of_transformers(model, real))
    # A rank's last batch may hold nothing else: its loss has the weight 0, and must be finite.
    torch.testing.assert_close(loss(False, False, False), of_transformers(model, tree))


def test_models_without_one_are_refused():
    with pytest.raises(ConfigError, match=r"has none for LlamaForCausalLM"):
        Scorer().read_balanced(build("llama"), ragged_tree(), [LogProbs()], counted=torch.tensor([True]))
    with pytest.raises(ConfigError, match="router_aux_loss_coef must be above 0"):
        DPOModule(PolicySpec(name="x"), DPO(), router_aux_loss_coef=0.0)


class Record(Callback):
    def __init__(self):
        self.losses, self.logged = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.logged.append(module._stats.get("router_aux_loss"))


def test_a_step_adds_it_to_the_loss_and_logs_it(tmp_path):
    tokenizer, folder = tiny_tokenizer(), tmp_path / "moe"
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **{**_GROUPED, "vocab_size": len(tokenizer)}, num_local_experts=4, **EXPERTS
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = {}
    for coefficient in (None, 0.5):
        record = Record()
        spec = lora_spec(folder)
        module = DPOModule(spec, DPO(), router_aux_loss_coef=coefficient)
        trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), record, max_steps=1)
        trainer.fit(module, make_datamodule(tmp_path, pair_rows(2), val=None))
        found[coefficient] = record
        described = {f"train/{info.name}" for info in module.metric_info}
        for names in (trainer.callback_metrics, described):
            assert ("train/router_aux_loss" in names) == (coefficient is not None)
    assert found[None].logged == [None]
    (aux,) = found[0.5].logged
    assert found[0.5].losses[0] - found[None].losses[0] == pytest.approx(0.5 * aux.item(), rel=1e-4)
    assert aux > 1

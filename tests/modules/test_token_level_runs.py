"""Token-level objectives in runs: what a model gives them, against whole vocabularies of single rows."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ContractError
from pl_prefopt.modules import DPOModule, TokenLevelModule
from pl_prefopt.objectives import TGDPO, WPO, TreeTPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, FrozenModel, InitialPolicy
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows
from tests.support import save_tiny_model


class Keep(Callback):
    """Keeps what the objective was given and what it returned."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append((batch, *outputs))


def whole(model, tree, row, number):
    """Log-probs over the vocabulary at each token of a response, [T, V] in float64, and the tokens taken."""
    response = tree.response_ids[row, number, : tree.response_sizes[row][number]]
    prompt = tree.prompt_ids[row, : tree.prompt_lengths[row]]
    with torch.no_grad():
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1), response


def test_tgdpo_reads_the_tokens_of_its_guide(tiny_model, tmp_path):
    """A guide of the policy's family and other weights, in value; then it trains."""
    guide = save_tiny_model(tmp_path / "guide", seed=5)
    module, keep = TokenLevelModule(lora_spec(tiny_model), TGDPO(beta=0.3, alpha=0.7)), Keep()
    ensemble = ReferenceEnsemble([AdapterOff(), FrozenModel(PolicySpec(name=str(guide)))])
    trainer = make_trainer(tmp_path, ensemble, keep, max_steps=2)
    trainer.fit(module, make_datamodule(tmp_path, pair_rows(4), batch_size=4))
    batch, scored, outcome = keep.seen[-1]
    tree, other = batch.trees["plain"], AutoModelForCausalLM.from_pretrained(guide)
    for row in range(4):
        reward = []
        for number in range(2):
            policy, taken = whole(module.policy, tree, row, number)
            with module.policy.disable_adapter():
                reference, _ = whole(module.policy, tree, row, number)
            guided, _ = whole(other, tree, row, number)
            a, r = ((one - reference).gather(-1, taken[:, None]).squeeze(-1) for one in (policy, guided))
            torch.testing.assert_close(
                scored.tokens.references[1, row, number, : len(taken)].double(),
                guided.gather(-1, taken[:, None]).squeeze(-1),
                atol=1e-5,
                rtol=1e-5,
            )
            sign = 1 if batch.scores[row, number] == batch.scores[row].max() else -1
            reward.append((sign, (0.3 * (1 + sign * 0.7 * 0.3 * r) * a).sum()))
        margin = sum(sign * value for sign, value in reward)
        assert outcome.loss[row].item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)


def test_tree_tpo_reads_the_states_of_its_lines(tiny_model, tmp_path):
    """Rewards from transformers' hidden states, with lines counted in the text."""
    answers = ("One.\nTwo foxes!\n\nThree.", "A dog.\nNo", "Sorry\n\n")
    rows = [
        {"prompt": prompt, "responses": list(answers), "scores": [0.9, 0.5, 0.1]}
        for prompt in ("What is a fox?", "Say no.")
    ]
    module, keep = TokenLevelModule(lora_spec(tiny_model), TreeTPO(normalize=True)), Keep()
    module.configure_model()
    for weight in module.policy.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight.data, std=0.1)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), keep)
    trainer.validate(module, make_datamodule(tmp_path, rows), verbose=False)
    batch, scored, outcome = keep.seen[-1]
    tree, tokenizer = batch.trees["plain"], module.load_tokenizer()
    for row in range(2):
        ratios, means = [], []
        for number in range(3):
            policy, taken = whole(module.policy, tree, row, number)
            with module.policy.disable_adapter():
                reference, _ = whole(module.policy, tree, row, number)
            prompt = tree.prompt_ids[row, : tree.prompt_lengths[row]]
            with torch.no_grad():
                states = module.policy(
                    input_ids=torch.cat([prompt, taken])[None], output_hidden_states=True
                ).hidden_states[-1][0, len(prompt) - 1 : -1]
            # A token belongs to the line in which the text up to it ends.
            texts = [
                tokenizer.decode(taken[: place + 1], skip_special_tokens=True) for place in range(len(taken))
            ]
            lines = torch.tensor(
                [len([one for one in text.split("\n") if one.strip()]) - 1 for text in texts]
            )
            assert scored.tokens.steps[row, number, : len(taken)].tolist() == lines.tolist()
            a = (policy - reference).gather(-1, taken[:, None]).squeeze(-1)
            ratios.append([a[lines == line].sum() for line in range(max(lines) + 1)])
            means.append([states[lines == line].mean(0) for line in range(max(lines) + 1)])
        assert [len(one) for one in means] == [3, 2, 1]
        for number in range(3):
            weights = [
                1 + torch.cosine_similarity(*pair, dim=0)
                for pair in zip(means[number], means[0], strict=False)
            ]
            reward = 0.5 * sum(w * a for w, a in zip(weights, ratios[number], strict=True)) / sum(weights)
            assert outcome.reward[row, number].item() == pytest.approx(reward.item(), abs=1e-5)
    assert outcome.reward.abs().max() > 0.1


def test_wpo_takes_a_table_since_it_reads_tokens_of_the_policy_alone(tiny_model, tmp_path):
    objective, keep = WPO(beta=0.3), Keep()
    module = DPOModule(lora_spec(tiny_model), objective)
    ensemble = ReferenceEnsemble([InitialPolicy()], precompute=True, cache_dir=str(tmp_path / "tables"))
    trainer = make_trainer(tmp_path, ensemble, keep)
    datamodule = make_datamodule(tmp_path, pair_rows(4), batch_size=4)
    (metrics,) = trainer.validate(module, datamodule, verbose=False)
    ((batch, _, outcome),) = keep.seen
    tree, weights = batch.trees["plain"], []
    for row in range(4):
        logs = 0.0
        for number in range(2):
            policy, taken = whole(module.policy, tree, row, number)
            own = policy.gather(-1, taken[:, None]).squeeze(-1)
            logs += (own - (2 * policy).logsumexp(-1)).mean().item()
        weights.append(math.exp(logs))
    # At the start every pair's own loss is log 2.
    torch.testing.assert_close(outcome.loss, torch.tensor(weights) * math.log(2), rtol=1e-4, atol=0)
    assert metrics["val/loss"] == pytest.approx(sum(weights) / 4 * math.log(2), rel=1e-4)


def test_a_guide_with_other_tokens_or_a_table_is_refused(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", chat_template=None)
    datamodule = make_datamodule(tmp_path, pair_rows(2))
    for ensemble, said in (
        (
            ReferenceEnsemble([AdapterOff(), FrozenModel(PolicySpec(name=str(other)))]),
            "tokeniser or template",
        ),
        (
            ReferenceEnsemble([AdapterOff(), InitialPolicy()], precompute=True),
            "references.precompute to false",
        ),
        (ReferenceEnsemble([AdapterOff()]), r"TGDPO needs exactly 2 reference\(s\)"),
    ):
        with pytest.raises(ContractError, match=said):
            make_trainer(tmp_path, ensemble).validate(
                TokenLevelModule(lora_spec(tiny_model), TGDPO()), datamodule, verbose=False
            )

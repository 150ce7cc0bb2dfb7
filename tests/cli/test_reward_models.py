"""Reward models on the command line: trained, tested, predicted with, planned and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pl_prefopt.cli.merge import merge_policies
from pl_prefopt.data import Renderer
from pl_prefopt.data.formats import to_row
from pl_prefopt.errors import ConfigError
from pl_prefopt.heads import (
    AttributeHead,
    DirectionHead,
    EmbeddingHead,
    IdealPointHead,
    MixtureHead,
    ScalarHead,
)
from pl_prefopt.modules import RewardModule, RewardScorer
from pl_prefopt.modules.reward_folders import write_folder
from pl_prefopt.objectives import RewardMixture, ScaledBradleyTerry
from pl_prefopt.policies import PolicySpec
from tests.runs import make_datamodule, make_trainer, metrics_of, pair_rows, write_rows
from tests.support import tiny_llama

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_reward_model_is_trained_predicted_with_and_exported(prefopt, tmp_path, tiny_model):
    records = [{**row, "margin": number / 2} for number, row in enumerate(pair_rows(8))]
    rows = write_rows(tmp_path / "rows.jsonl", records)
    files = (CONFIGS / f"{name}.yaml" for name in ("base", "methods/bradley_terry_margin", "hardware/cpu"))
    axes = [part for file in files for part in ("-c", file)]
    stages = ["--data.train", rows, "--data.test", rows, "--data.held_out", 2]
    fit = [*axes, *stages, "--model.init_args.policy.name", tiny_model, "--run_dir", "run"]
    assert "forward and backward pass" in prefopt("plan", *fit)
    missing = prefopt.fails(
        "fit", *fit, "--model.init_args.objective.init_args.margin.init_args.column", "gap"
    )
    assert "MarginBradleyTerry needs the column 'gap'" in missing
    prefopt("fit", *fit, "--model.init_args.optimizer.init_args.lr", 0.01, "--trainer.max_epochs", 2)
    prefopt("test", "-c", "run/config.yaml", "--ckpt_path", "last")
    assert "test/chosen_logp" not in metrics_of("run", "test")
    prefopt("predict", "-c", "run/config.yaml", "--ckpt_path", "last", "--data.predict", rows)
    prefopt("report", "run")
    predicted = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    expected = [[one["reward"] for one in line["responses"]] for line in predicted]
    assert predicted[0]["responses"][0]["log_prob"] is None

    prefopt("export", "run/checkpoints/last.ckpt", "--out", "out")
    card = Path("out/README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "library_name: transformers" in card
    assert 'AutoModelForSequenceClassification.from_pretrained("FOLDER")' in card
    scorer = RewardScorer.load("out")
    torch.testing.assert_close(
        torch.tensor(scorer.rewards([to_row(record) for record in records], batch_size=3)),
        torch.tensor(expected),
        rtol=0,
        atol=1e-5,
    )
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained("out"),
        AutoTokenizer.from_pretrained("out"),
    )
    assert model.config.pad_token_id == tokenizer.pad_token_id != scorer.renderer.end_token_id
    for record, rewards in zip(records, expected, strict=True):
        encoded = scorer.renderer.encode(to_row(record))
        ids = [[*encoded.prompt_ids, *response] for response in encoded.response_ids]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch).logits.squeeze(-1)
        assert found.tolist() == pytest.approx(rewards, abs=1e-5)


def heads():
    """One head of each kind that transformers has no class for, with what it has learned."""
    users = {"users": ["ann", "bob"]}
    return [
        (EmbeddingHead(blocks=2, prompt_gate=True, learned_temperature=True), {}),
        (MixtureHead(parts=2), {}),
        (MixtureHead(parts=2), {"context": [-0.1, -2.3]}),
        (IdealPointHead(prototypes=2, dimensions=3), users),
        (DirectionHead(prototypes=2, dimensions=3), users),
        (AttributeHead(attributes=["a", "b"]), {}),
    ]


def test_other_heads_are_read_back_with_what_they_have_learned(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    policy = tiny_llama(len(tokenizer))
    renderer = Renderer(tokenizer)
    rows = [to_row({**row, "user": "ann" if number else "bob"}) for number, row in enumerate(pair_rows(3))]
    for number, (head, learned) in enumerate(heads()):
        torch.manual_seed(number)
        head.learned = learned
        head.build(32)
        with torch.no_grad():  # gates and routers start at 0
            for weight in head.parameters():
                weight.add_(torch.randn_like(weight))
        expected = RewardScorer(policy, head, renderer).outputs(rows)
        folder = tmp_path / str(number)
        folder.mkdir()
        write_folder(folder, policy, head, tokenizer, {"end_token_id": renderer.end_token_id})
        loaded = RewardScorer.load(folder)
        assert type(loaded.head) is type(head)
        for found, outputs in zip(loaded.outputs(rows), expected, strict=True):
            torch.testing.assert_close(found, outputs, rtol=0, atol=1e-5)


def test_scaled_bradley_terry_goes_on_from_another_model_and_is_extrapolated(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    head = ScalarHead()
    head.build(32)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    tokenizer.pad_token = "<|im_end|>"  # the end token, as tokenisers without a padding token are often set
    write_folder(tmp_path / "first", tiny_llama(len(tokenizer)), head, tokenizer, {"end_token_id": 2})
    assert tokenizer.pad_token_id != 2

    records = [{**row, "magnitude": 2.0} for row in pair_rows(4)]
    module = RewardModule(
        PolicySpec(name=str(tmp_path / "first")),
        ScaledBradleyTerry(),
        head_from=str(tmp_path / "first"),
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1),
    )
    first = RewardScorer.load(tmp_path / "first")
    rows = [to_row(record) for record in records]
    data = make_datamodule(tmp_path, records, batch_size=4)
    make_trainer(tmp_path).validate(module, data, verbose=False)
    torch.testing.assert_close(
        RewardScorer.of(module, first.renderer).rewards(rows), first.rewards(rows), rtol=0, atol=1e-5
    )
    make_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    (tmp_path / "plain").mkdir()
    other_template = make_datamodule(tmp_path / "plain", records, template="plain")
    with pytest.warns(
        UserWarning, match=r"another chat template than this run's.* set data\.template to auto"
    ):
        make_trainer(tmp_path, max_steps=0).fit(module, other_template)
    write_folder(tmp_path / "second", module.policy, module.reward_head, tokenizer, {"end_token_id": 2})

    places = [tmp_path / "first", tmp_path / "second"]
    merge_policies(places, [-0.5, 1.5], tmp_path / "third")
    one, two, three = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict()
        for name in ("first", "second", "third")
    )
    assert not torch.equal(one["score.weight"], two["score.weight"])
    for name, weight in three.items():
        torch.testing.assert_close(weight, two[name] + 0.5 * (two[name] - one[name]))
    assert torch.equal(RewardScorer.load(tmp_path / "third").head.score.weight, three["score.weight"])
    with pytest.raises(ConfigError, match=r"weights that add up to 1.* for reward models"):
        merge_policies(places, [0.5, 1.0], tmp_path / "fourth")
    other = RewardModule(
        PolicySpec(name=str(tmp_path / "first")),
        RewardMixture(),
        MixtureHead(parts=2),
        head_from=str(tmp_path / "first"),
    )
    apart = RewardModule(
        PolicySpec(name=str(tiny_model)), ScaledBradleyTerry(), head_from=str(tmp_path / "first")
    )
    with pytest.raises(ConfigError, match=r"a head on the model in .*first, but policy\.name is .* other w"):
        make_trainer(tmp_path).fit(apart, data)
    policy = tiny_llama(len(tokenizer))
    torch.set_default_dtype(torch.bfloat16)  # as Lightning's bf16-true does
    try:
        heads = apart.build_heads(policy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(heads["reward"].score.weight, head.score.weight)
    with pytest.raises(ConfigError, match=r"to be .*MixtureHead.*, but it is .*ScalarHead"):
        make_trainer(tmp_path).fit(other, data)

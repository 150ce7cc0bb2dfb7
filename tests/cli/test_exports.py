"""Exports are the policy in plain transformers and PEFT, or they aren't written."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pl_prefopt.cli import export_check
from pl_prefopt.cli.export import export_policy
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.policies import FourBit, PolicySpec, build_policy, merging
from tests.adapters import STARTS, save_config, save_run, save_tied_model
from tests.cli.test_commands import axes
from tests.runs import LORA, NO_TEXTS, pair_rows, write_rows

IDS = torch.arange(5, 395).reshape(10, 39)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with biases, whose embeddings are tied."""
    return save_tied_model(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def plain_run(base, tmp_path_factory):
    """The checkpoint of a run with a plain adapter."""
    checkpoint, _ = save_run(tmp_path_factory.mktemp("plain") / "run", PolicySpec(name=str(base), lora=LORA))
    return checkpoint


def log_probs(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float().log_softmax(-1)


def plain(out, base, *, merge):
    """Load an export without this package."""
    if merge:
        return AutoModelForCausalLM.from_pretrained(out)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)


@pytest.mark.parametrize("name", STARTS)
def test_every_adapter_is_exported_as_it_was_trained(base, tmp_path, name):
    spec = PolicySpec(name=str(base), lora={**LORA, **STARTS[name]})
    checkpoint, policy = save_run(tmp_path / "run", spec)
    expected, off = log_probs(policy), log_probs(AutoModelForCausalLM.from_pretrained(base))
    assert (expected - off).abs().max() > 0.1
    for merge in (False, True):
        out = tmp_path / f"merged {merge}"
        if merge and name == "bias of the adapter":  # some of the layers have no bias that could take it up
            with pytest.raises(ConfigError, match=r"can't be merged .* without --merge"):
                export_policy(checkpoint, out, merge=True)
            continue
        export_policy(checkpoint, out, merge=merge)
        torch.testing.assert_close(log_probs(plain(out, base, merge=merge)), expected, atol=1e-4, rtol=1e-4)
    again = build_policy(PolicySpec(name=str(base), adapter=str(tmp_path / "merged False")))
    torch.testing.assert_close(log_probs(again), expected, atol=1e-4, rtol=1e-4)


def test_a_start_that_can_not_be_converted_is_merged_only(base, tmp_path):
    lora = {**LORA, "init_lora_weights": "olora"}
    for number, other in enumerate(({"bias": "all"}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}})):
        run = tmp_path / str(number)
        checkpoint, policy = save_run(run, PolicySpec(name=str(base), lora={**lora, **other}))
        with pytest.raises(ConfigError, match=r"can't convert this adapter .*--merge true"):
            export_policy(checkpoint, run / "adapter", merge=False)
        export_policy(checkpoint, run / "merged", merge=True)
        merged = log_probs(plain(run / "merged", base, merge=True))
        torch.testing.assert_close(merged, log_probs(policy), atol=1e-4, rtol=1e-4)
        assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml", "merged"}


def test_embeddings_are_untied_only_where_merging_made_them_differ(base, tmp_path):
    for name, tied in (("plain", True), ("tokens", True), ("embeddings", False)):
        checkpoint, _ = save_run(tmp_path / name, PolicySpec(name=str(base), lora={**LORA, **STARTS[name]}))
        export_policy(checkpoint, tmp_path / f"{name} merged", merge=True)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name} merged")
        assert model.config.tie_word_embeddings == tied
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(
    ("dtype", "written"), [("float32", "bfloat16"), ("bfloat16", None), ("bfloat16", "float32")]
)
def test_rounding_is_no_fault(base, tmp_path, dtype, written):
    for name, lora in (("adapter", LORA), ("all weights", None)):
        checkpoint, _ = save_run(tmp_path / name, PolicySpec(name=str(base), lora=lora, dtype=dtype))
        export_policy(checkpoint, tmp_path / f"{name} exported", merge=True, dtype=written)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name} exported")
        assert model.dtype == getattr(torch, written or dtype)


def test_a_base_in_4_bits_that_is_exported_in_full_precision_is_mentioned(base, plain_run, tmp_path, capsys):
    spec = PolicySpec(name=str(base), lora=LORA, four_bit=FourBit())
    export_policy(plain_run, tmp_path / "out", merge=True, config=str(save_config(tmp_path, spec)))
    assert "export has the base in full precision" in capsys.readouterr().out
    assert "base in full precision" in (tmp_path / "out/README.md").read_text()


def tie_again(monkeypatch):
    """Merge as PEFT does by itself."""
    monkeypatch.setattr(merging, "_untie", lambda model: None)


def forget_a_scale(monkeypatch):
    """Write an adapter's configuration with another ``lora_alpha``."""
    original = PeftModel.save_pretrained

    def write(self, folder, **settings):
        original(self, folder, **settings)
        file = Path(folder) / "adapter_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({**settings, "lora_alpha": 1.2 * settings["lora_alpha"]}))

    monkeypatch.setattr(PeftModel, "save_pretrained", write)


FAULTS = {"tied embeddings": (tie_again, "embeddings", True), "a scale": (forget_a_scale, "plain", False)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("fault", "name", "merge"), FAULTS.values(), ids=FAULTS)
def test_an_export_that_is_not_the_policy_is_not_written(
    base, tmp_path, monkeypatch, fault, name, merge, dtype
):
    spec = PolicySpec(name=str(base), lora={**LORA, **STARTS[name]}, dtype=dtype)
    checkpoint, _ = save_run(tmp_path / "run", spec)
    fault(monkeypatch)
    with pytest.raises(ConfigError, match=r"differs from the policy\. Log-probs per token .*up to [\d.]+ \("):
        export_policy(checkpoint, tmp_path / "exported", merge=merge)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_an_export_is_tried_on_rows_of_the_run_where_they_are_there(base, tmp_path):
    spec = PolicySpec(name=str(base))
    scattered = export_check.trial_rows(spec, {})
    assert {len(row) for row in scattered} == {48}
    assert len({token for row in scattered for token in row}) > 100
    data = {"train": write_rows(tmp_path / "rows.jsonl", pair_rows(9)), "template": "chat"}
    for train in (data["train"], {"path": data["train"]}):
        rows = export_check.trial_rows(spec, {**data, "train": train})
        assert rows[:3] == scattered
        texts = [spec.load_tokenizer().decode(row) for row in rows[3:]]
        assert len(texts) == 3
        assert all("assistant" in text and "quick" in text for text in texts)
    for train in ("moved.jsonl", "some/hub-data", __file__):
        assert export_check.trial_rows(spec, {**data, "train": train}) == scattered


OTHERS = {
    "lora_alpha": ({"lora": {**LORA, "lora_alpha": 16}}, "made with policy.lora"),
    "r": ({"lora": {**LORA, "r": 2}}, "made with policy.lora"),
    "targets": ({"lora": {**LORA, "target_modules": ["q_proj"]}}, "made with policy.lora"),
    "base": ({"name": "other"}, "made with the base"),
}


@pytest.mark.parametrize(("change", "reason"), OTHERS.values(), ids=OTHERS)
def test_the_configuration_of_another_run_is_refused(base, plain_run, tiny_model, tmp_path, change, reason):
    change = {key: str(tiny_model) if value == "other" else value for key, value in change.items()}
    spec = dataclasses.replace(PolicySpec(name=str(base), lora=LORA), **change)
    config = str(save_config(tmp_path, spec))
    with pytest.raises(ConfigError, match=f"{reason} .* or name its run's config.yaml with --config"):
        export_policy(plain_run, tmp_path / "exported", merge=False, config=config)
    config = str(save_config(tmp_path, PolicySpec(name=str(base), lora=LORA), objective="IPO"))
    with pytest.raises(ConfigError, match="made with method 'DPO', but this run has 'IPO'"):
        export_policy(plain_run, tmp_path / "exported", merge=False, config=config)
    assert not (tmp_path / "exported").exists()


def test_an_adapter_that_a_run_started_from_is_known_by_its_files(base, tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        policy = build_policy(PolicySpec(name=str(base), lora=LORA))
        policy.save_pretrained(tmp_path / f"adapter {seed}")
    first, second = (PolicySpec(name=str(base), adapter=str(tmp_path / f"adapter {seed}")) for seed in (1, 2))
    checkpoint, policy = save_run(tmp_path / "run", first)
    export_policy(checkpoint, tmp_path / "exported", merge=False)
    torch.testing.assert_close(log_probs(plain(tmp_path / "exported", base, merge=False)), log_probs(policy))
    config = str(save_config(tmp_path, second))
    with pytest.raises(ConfigError, match=r"made with policy\.adapter"):
        export_policy(checkpoint, tmp_path / "other", merge=False, config=config)


@pytest.mark.parametrize("out", ["new/..", "new/../there", "..", ".", "there/", "there/../there", "link"])
def test_out_never_names_what_is_there(prefopt, plain_run, out):
    Path("there").mkdir()
    Path("there/kept.txt").write_text("kept")
    Path("link").symlink_to("nowhere")
    assert "Expected --out to be a new folder" in prefopt.fails("export", plain_run, "--out", out)
    assert {path.name for path in Path().iterdir()} == {"there", "link"}
    assert Path("there/kept.txt").read_text() == "kept"


def test_out_with_dots_is_the_folder_that_it_means(prefopt, plain_run):
    Path("there").mkdir()
    prefopt("export", plain_run, "--out", "there/../new/../deep/er")
    assert {path.name for path in Path().iterdir()} == {"there", "deep"}
    assert {path.name for path in Path("deep").iterdir()} == {"er"}
    assert Path("deep/er/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "variant", [{"init_lora_weights": "pissa", "use_rslora": True}, {"use_dora": True}], ids=["PiSSA", "DoRA"]
)
def test_variants_of_lora_from_yaml_start_at_the_base_resume_and_are_exported(prefopt, tiny_model, variant):
    lora = {**LORA, **variant}
    policy = {"name": str(tiny_model), "lora": lora}
    Path("variant.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"policy": policy}}}))
    rows = write_rows(Path("rows.jsonl"), pair_rows(4))
    fit = ("fit", *axes(), "-c", "variant.yaml", "--data.train", rows, "--data.held_out", "0", *NO_TEXTS)
    fit += ("--run_dir", "run", "--trainer.log_every_n_steps", "1", "--trainer.accumulate_grad_batches", "1")
    prefopt(*fit, "--lr", "0.01", "--trainer.max_steps", "1")
    with Path("run/metrics.csv").open() as file:
        (loss,) = (row["train/loss"] for row in csv.DictReader(file) if row["train/loss"])
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    prefopt(*fit, "--lr", "0.01", "--trainer.max_steps", "2", "--ckpt_path", "last")
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "adapter")
    expected = log_probs(DPOModule.load_from_checkpoint("run/checkpoints/last.ckpt").policy)
    found = log_probs(plain("adapter", tiny_model, merge=False))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    moved = found - log_probs(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert moved.abs().max() > 0.01

"""Every callback and every Trainer flag of Lightning, as the table in the documentation has them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.modules.compatibility import check_strategy
from pl_prefopt.objectives import DPO
from tests.cli.test_commands import CONFIGS
from tests.cli.test_two_processes import prefopt as prefopt_process
from tests.docs.pages import ROOT
from tests.runs import NO_TEXTS, lora_spec, make_datamodule, make_trainer, scored_rows, write_rows

PAGE = ROOT / "docs" / "lightning.md"
STOCK = "lightning.pytorch.callbacks."


def table(heading):
    """The names in a table of the page, by what the page says of them."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    named = {"works": set(), "refused": set()}
    for first, status in re.findall(r"^\| (`.*?) \| (\w+) \|", text, flags=re.MULTILINE):
        names = set(re.findall(r"`(\w+)`", first))
        assert not names & (named["works"] | named["refused"])
        named[status] |= names
    return named


def stock(name, **settings):
    arguments = ["--trainer.callbacks+", STOCK + name]
    for key, value in settings.items():
        arguments += [f"--trainer.callbacks.init_args.{key}", str(value)]
    return arguments


def flags(**settings):
    return [part for key, value in settings.items() for part in (f"--trainer.{key}", str(value))]


RUNS = {
    "averaged": [
        *stock("EMAWeightAveraging", decay=0.5),
        *stock("DeviceStatsMonitor"),
        *stock("EarlyStopping", monitor="val/loss", patience=9),
        *stock("Timer", duration="00:01:00:00"),
        *flags(val_check_interval=2, check_val_every_n_epoch=1, gradient_clip_val=0.5),
        *flags(gradient_clip_algorithm="value", deterministic="true", log_every_n_steps=1),
    ],
    "equal": [
        *stock("WeightAveraging"),
        *stock("GradientAccumulationScheduler", scheduling="{0: 1, 1: 2}"),
        *stock("Callback"),
        *stock("Checkpoint"),
        *flags(precision="bf16-mixed", num_sanity_val_steps=0, max_time="00:01:00:00"),
        *flags(reload_dataloaders_every_n_epochs=1, enable_autolog_hparams="false"),
    ],
    "searched": [
        *stock("LearningRateFinder", num_training_steps=14, min_lr=1e-4, max_lr=0.1),
        *stock("LearningRateMonitor"),
        *stock("ModelSummary", max_depth=2),
        *stock("TQDMProgressBar"),
        *flags(limit_val_batches=1, min_epochs=1, min_steps=2, benchmark="true", num_nodes=1),
    ],
    "saved": [
        *stock("ModelCheckpoint", save_top_k=-1, dirpath="more"),
        *stock("OnExceptionCheckpoint", dirpath="failed"),
        *stock("RichModelSummary", max_depth=1),
        *stock("RichProgressBar"),
        *stock("LambdaCallback"),
        *flags(detect_anomaly="true"),  # slow, so it is here, where only two batches are trained on
        *flags(overfit_batches=2, use_distributed_sampler="false", inference_mode="false", profiler="simple"),
        *flags(sync_batchnorm="true", model_registry="somebody/something", accelerator="cpu", devices=1),
    ],
    "measured": [
        *stock("ThroughputMonitor", batch_size_fn="builtins.len"),
        *stock("BasePredictionWriter"),
        *stock("ProgressBar"),
        *flags(accumulate_grad_batches=3, max_steps=5, limit_train_batches=0.8, strategy="auto"),
        *flags(limit_test_batches=1, limit_predict_batches=1, enable_model_summary="false"),
        *flags(val_check_interval="{seconds: 0}", default_root_dir="elsewhere", precision="64-true"),
        *flags(plugins="lightning.pytorch.plugins.environments.LightningEnvironment"),
    ],
    "quiet": flags(enable_progress_bar="false", logger="false", limit_val_batches=0, precision="bf16-true"),
}
"""Runs that have each callback and each flag that works at least once."""

ELSEWHERE = {
    "fast_dev_run",  # which leaves nothing to resume: below
    "max_epochs",  # of all runs
    "callbacks",
    "barebones",
}


def test_the_page_names_all_that_lightning_has_and_the_tests_run_it():
    of_page = table("Callbacks")
    assert of_page["works"] | of_page["refused"] == set(callbacks.__all__)
    words = [word for arguments in RUNS.values() for word in arguments]
    run = {word.removeprefix(STOCK) for word in words if word.startswith(STOCK)}
    assert run == of_page["works"]
    of_page = table("Trainer flags")
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert of_page["works"] | of_page["refused"] == known
    run = {word.removeprefix("--trainer.") for word in words if word.startswith("--trainer.")}
    assert {name for name in run if "." not in name and "+" not in name} == of_page["works"] - ELSEWHERE


@pytest.fixture
def settings(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    held_out = write_rows(tmp_path / "held_out.jsonl", scored_rows(2))
    files = [CONFIGS / "methods" / "dpo.yaml", CONFIGS / "hardware" / "cpu.yaml"]
    return [
        *(part for file in files for part in ("-c", file)),
        *NO_TEXTS,
        *("--data.train", rows, "--data.val", held_out, "--data.batch_size", "1"),
        *("--model.init_args.policy.name", tiny_model, "--model.init_args.policy.lora.r", "2"),
        *("--model.init_args.optimizer.lr", "0.01", "--trainer.max_epochs", "2"),
    ]


def adapter_of(checkpoint):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: weight for name, weight in weights.items() if "lora" in name}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_it_resumes_and_is_exported(name, prefopt, settings, tiny_model):
    prefopt("fit", *settings, *RUNS[name], "--run_dir", "run")
    before = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    again = ("--trainer.max_epochs", "3", "--trainer.max_steps", "-1", "--ckpt_path", "last")
    prefopt("fit", "-c", "run/config.yaml", *again)
    after = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] > before["global_step"] > 0
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "exported")
    saved = adapter_of("run/checkpoints/last.ckpt")
    exported = load_file("exported/adapter_model.safetensors")
    assert len(exported) == len(saved)
    for key, weight in exported.items():
        name_there = "policy." + key.replace(".weight", ".default.weight")
        assert torch.equal(weight, saved[name_there].to(weight.dtype)), key
    card = Path("exported/README.md").read_text(encoding="utf-8")
    (lr,) = re.findall(r"^    lr: (.*)$", card, flags=re.MULTILINE)
    assert float(lr) == after["optimizer_states"][0]["param_groups"][0]["initial_lr"]
    assert (float(lr) != 0.01) == (name == "searched")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), "exported")


def test_a_step_to_try_leaves_no_run(prefopt, settings):
    prefopt("fit", *settings, "--trainer.fast_dev_run", "true", "--run_dir", "run")
    assert not list(Path().rglob("*.ckpt"))
    assert not Path("run/config.yaml").exists()


def test_processes_that_lightning_starts_itself(prefopt, tmp_path, settings):
    def trained(name, *more):
        prefopt_process(tmp_path, "fit", *settings, *more, "--run_dir", name)
        return adapter_of(tmp_path / name / "checkpoints" / "last.ckpt")

    prefopt("fit", *settings, "--data.batch_size", "2", "--run_dir", "one")
    one = adapter_of("one/checkpoints/last.ckpt")
    for strategy in ("ddp_spawn", "ddp_fork"):
        two = flags(strategy=strategy, devices=2, num_sanity_val_steps=0)
        found = trained(strategy, *two, "--data.batch_size", "1")
        for name, weight in one.items():
            torch.testing.assert_close(found[name], weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(table("Callbacks")["refused"]))
def test_what_cannot_work_is_refused_before_a_model_loads(name, tiny_model, tmp_path):
    kind = getattr(callbacks, name)
    needed = {
        "ModelPruning": {"pruning_fn": "l1_unstructured"},
        "StochasticWeightAveraging": {"swa_lrs": 0.01},
    }
    module = DPOModule(lora_spec(tiny_model), DPO())
    trainer = make_trainer(tmp_path, kind(**needed.get(name, {})))
    with pytest.raises(ConfigError, match=rf"^Remove {name} from trainer\.callbacks\. It .*"):
        trainer.fit(module, datamodule=make_datamodule(tmp_path))
    assert not hasattr(module, "policy")


def test_strategies_and_plugins_that_cannot_work_are_refused(prefopt, settings):
    with pytest.raises(ConfigError, match=r"pl_prefopt\.modules\.FSDP2Strategy"):
        check_strategy(FSDPStrategy())
    check_strategy(DDPStrategy())
    said = prefopt.fails(
        "fit", *settings, "--trainer.plugins", "lightning.pytorch.plugins.io.AsyncCheckpointIO"
    )
    assert "Remove AsyncCheckpointIO from trainer.plugins" in said
    assert "--best.save_top_k 0" in prefopt.fails("fit", *settings, "--trainer.enable_checkpointing", "false")

"""The command line as a user meets it: one run through all commands, and what each mistake gets told."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gguf_files import write_tiny_gguf
from tests.method_files import CONFIGS, one_of_each_family
from tests.runs import metrics_of, pair_rows, scored_rows, write_rows


def axes(method="dpo"):
    """The configuration files of a CPU run."""
    files = (CONFIGS / "base.yaml", CONFIGS / "methods" / f"{method}.yaml", CONFIGS / "hardware" / "cpu.yaml")
    return [part for file in files for part in ("-c", file)]


@pytest.fixture
def settings(tiny_model, tmp_path):
    """Where the policy and the rows are."""
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    return [
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.callbacks+",
        "Generations",
        "--trainer.callbacks.max_new_tokens",
        "4",
        "--data.train",
        rows,
        "--data.held_out",
        "3",
        "--model.init_args.policy.name",
        tiny_model,
    ]


@pytest.fixture
def run(prefopt, settings):
    """A finished run's folder."""
    prefopt("fit", *axes(), *settings, "--run_dir", "run", "--model.init_args.optimizer.lr", "0.01")
    return Path("run")


def test_a_run_leaves_everything_in_its_folder(run, prefopt):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "metrics.json", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    with (run / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "val/accuracy", "val/margin"} <= set(columns)
    assert yaml.safe_load((run / "config.yaml").read_text())["run_dir"] == "."


def test_validating_a_checkpoint_gives_what_training_measured(run, prefopt):
    measured = metrics_of(run)
    (run / "metrics.json").unlink()
    prefopt("validate", "-c", run / "config.yaml", "--ckpt_path", "last")
    again = metrics_of(run)
    assert again == pytest.approx(measured, abs=1e-5)
    assert {"val/accuracy", "val/margin", "val/loss"} <= set(again)
    # The curves of training are still there.
    assert "train/loss" in (run / "metrics.csv").read_text().splitlines()[0]


def test_testing_adds_to_the_metrics(run, prefopt):
    shutil.copy("rows.jsonl", "test.jsonl")
    before = metrics_of(run)
    prefopt("test", "-c", run / "config.yaml", "--ckpt_path", "best", "--data.test", "test.jsonl")
    assert {"test/accuracy", "test/margin"} <= set(metrics_of(run, "test"))
    assert metrics_of(run) == before


def test_validating_without_a_checkpoint_says_what_it_measures(run, prefopt):
    printed = prefopt("validate", "-c", run / "config.yaml", "--run_dir", "untrained")
    assert "evaluating the policy before training" in printed
    assert metrics_of("untrained")["val/margin"] == 0


def test_predictions_are_one_line_a_prompt(run, prefopt):
    arguments = ("predict", "-c", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    prefopt(*arguments, "--data.predict", "rows.jsonl")
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(8))
    rows = scored_rows(8)
    for line, row in zip(lines, rows, strict=True):
        assert line["prompt"] == [{"role": "user", "content": row["prompt"]}]
        assert [response["response"] for response in line["responses"]] == row["responses"]
        assert [response["score"] for response in line["responses"]] == row["scores"]
        by_reward = sorted(line["responses"], key=lambda response: -response["reward"])
        assert [response["rank"] for response in by_reward] == list(range(1, len(by_reward) + 1))
        assert all(response["log_prob"] < 0 < response["length"] for response in line["responses"])


def test_a_tested_run_has_a_report(run, prefopt):
    said = prefopt.fails("report", "runz")
    assert "no folder runz; did you mean 'run'" in said
    assert "is a folder" in prefopt.fails("report", run, "--out", run)
    prefopt("test", "-c", run / "config.yaml", "--ckpt_path", "last", "--data.test", "rows.jsonl")
    assert f"Wrote {run / 'report.html'}" in prefopt("report", run)
    page = (run / "report.html").read_text(encoding="utf-8")
    accuracy = metrics_of(run, "test")["test/accuracy"]
    assert f"{100 * accuracy:.1f} %" in page
    assert "What is a fox? 0" in page  # a disagreement or a dot
    assert "no predictions" not in page
    assert '"curve_loss"' in page


def log_prob(model, tokenizer, prompt, response):
    """Σ log π(response | prompt) by plain transformers."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    start = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{text}{response}<|im_end|>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([whole])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return scores.gather(-1, ids[0, 1:, None])[len(start) - 1 :].sum().item()


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_an_exported_policy_gives_the_same_log_probs_in_plain_transformers(run, prefopt, tiny_model, merge):
    checkpoint = run / "checkpoints" / "last.ckpt"
    prefopt("predict", "-c", run / "config.yaml", "--ckpt_path", checkpoint, "--data.predict", "rows.jsonl")
    prefopt("export", checkpoint, "--out", "exported", "--merge", str(merge).lower())
    if merge:
        model = AutoModelForCausalLM.from_pretrained("exported")
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), "exported")
    tokenizer = AutoTokenizer.from_pretrained("exported")
    for line in Path("run/predictions.jsonl").read_text().splitlines():
        predicted = json.loads(line)
        for response in predicted["responses"]:
            found = log_prob(model.eval(), tokenizer, predicted["prompt"][0]["content"], response["response"])
            assert found == pytest.approx(response["log_prob"], abs=2e-3)


def test_a_stopped_run_goes_on_with_the_same_command(prefopt, settings):
    command = ["fit", *axes(), *settings, "--run_dir", "run", "--ckpt_path", "last"]
    assert "starting from the beginning" in prefopt(*command)
    first = Path("run/metrics.csv").read_text()
    prefopt(*command, "--trainer.max_epochs", "2")
    assert Path("run/metrics.1.csv").read_text() == first
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1


def test_a_second_run_in_the_same_folder_is_refused(run, prefopt, settings):
    said = prefopt.fails("fit", *axes(), *settings, "--run_dir", "run")
    assert "already contains a run" in said
    assert "--ckpt_path last" in said
    shutil.copytree(run, "other")
    another = ["--run_dir", "run", "--ckpt_path", "other/checkpoints/last.ckpt"]
    assert "already contains a run" in prefopt.fails("fit", *axes(), *settings, *another)


def test_a_run_that_may_not_go_on_keeps_its_settings(run, prefopt, settings):
    before = (run / "config.yaml").read_text()
    again = ["fit", *axes(), *settings, "--run_dir", "run", "--ckpt_path", "last"]
    said = prefopt.fails(*again, "--model.init_args.policy.lora.r", "2")
    assert "made with policy.lora" in said
    said = prefopt.fails(*again, "--model.init_args.optimizer", "torch.optim.SGD")
    assert "made with optimizer 'torch AdamW', but this run has 'torch SGD'" in said
    assert (run / "config.yaml").read_text() == before
    prefopt(*again, "--trainer.max_epochs", "2")
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_named_sets_are_measured_and_a_run_does_not_go_on_from_weights_alone(prefopt, settings, tmp_path):
    sets = {name: write_rows(tmp_path / f"{name}.jsonl", scored_rows(2)) for name in ("helpful", "harmless")}
    command = ["fit", *axes(), *settings, "--run_dir", "run"]
    said = prefopt.fails(*command, "--data.val", json.dumps(sets))
    assert "write named sources to a YAML file, for `-c`" in said
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"data": {"val": sets}}))
    command += ["-c", tmp_path / "sets.yaml"]
    prefopt(*command, "--best.save_weights_only", "true", "--best.monitor", "val/harmless/accuracy")
    measured = metrics_of("run")
    assert {"val/accuracy", "val/helpful/accuracy", "val/harmless/accuracy"} <= set(measured)
    assert "holds weights only" in prefopt.fails(*command, "--ckpt_path", "best")
    prefopt("validate", "-c", "run/config.yaml", "--ckpt_path", "last")
    assert metrics_of("run") == pytest.approx(measured, abs=1e-5)


def test_a_run_goes_on_with_the_settings_that_are_asked_for(run, prefopt, settings):
    lower = ["--model.init_args.optimizer.lr", "0.001", "--trainer.max_epochs", "2"]
    lower += ["--model.init_args.objective.init_args.beta", "0.5"]
    printed = prefopt("fit", *axes(), *settings, *lower, "--run_dir", "run", "--ckpt_path", "last")
    assert "optimiser's lr is 0.001; the checkpoint's was 0.01" in printed
    assert "objective's beta is 0.5; the checkpoint's was 0.1" in printed
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.001
    assert saved["lr_schedulers"][0]["base_lrs"] == [0.001]
    with (run / "metrics.csv").open() as file:
        rates = [float(row["lr-AdamW"]) for row in csv.DictReader(file) if row["lr-AdamW"]]
    assert 0 < max(rates) <= 0.001


def test_without_validation_rows_the_last_checkpoint_is_kept(prefopt, settings):
    prefopt("fit", *axes(), *settings, "--data.held_out", "0", "--run_dir", "run")
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"last.ckpt"}


@pytest.mark.parametrize("method", one_of_each_family(), ids=lambda path: path.stem)
def test_every_family_takes_a_step(prefopt, settings, method, tiny_model, tmp_path):
    files = yaml.safe_load(method.read_text())
    members = files.get("references", {}).get("members", [])
    extra = [
        part
        for member in members[-1:]
        if "model" in member.get("init_args", {})
        for part in ("--references.members.init_args.model.name", tiny_model)  # of the last one
    ]
    if "desirable_above" in files["model"]["init_args"]["objective"]["init_args"]:  # the rows have grades
        extra += ["--model.init_args.objective.init_args.desirable_above", "4"]
    if "contrastive_weight" in files["model"]["init_args"]["objective"]["init_args"]:
        extra += [
            "--model.init_args.policy.lora",
            '{"r": 2, "target_modules": "all-linear", "lora_dropout": 0.1}',
        ]
    if "samples" in files["model"]["init_args"]:
        samples = write_rows(tmp_path / "samples.jsonl", scored_rows(4))
        extra += ["--model.init_args.samples", samples]
    further = {
        "adaptive_margin_dpo": [row | {"strength": row["scores"]} for row in scored_rows(8)],
        "rationale_dpo": [row | {"rationale": "It fits."} for row in pair_rows(8)],
        "rationale_orpo": [row | {"rationale": "It fits."} for row in pair_rows(8)],
    }
    if method.stem in further:
        extra += ["--data.train", write_rows(tmp_path / "more.jsonl", further[method.stem])]
    prefopt("fit", *axes(method.stem), *settings, *extra, "--trainer.fast_dev_run", "1")


@pytest.mark.parametrize("file", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_file_parses(prefopt, file, tiny_model):
    printed = prefopt(
        "fit", *axes(), "-c", file, "--model.init_args.policy.name", tiny_model, "--print_config"
    )
    assert yaml.safe_load(printed)["data"]["train"]


@pytest.mark.parametrize("file", sorted((CONFIGS / "loggers").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_logger_file_parses_beside_the_axes(prefopt, file):
    pytest.importorskip(file.stem, reason="its package is not installed: pip install 'pl-prefopt[loggers]'")
    printed = prefopt("fit", *axes(), "-c", file, "--data.train", "rows.jsonl", "--print_config")
    asked, found = (yaml.safe_load(text)["trainer"]["logger"] for text in (file.read_text(), printed))
    if asked:
        assert found["class_path"] == asked["class_path"]
        assert asked["init_args"].items() <= found["init_args"].items()
    else:
        assert found == []


def test_csv_files_alone_are_a_dashboard(prefopt, settings):
    prefopt("fit", *axes(), "-c", CONFIGS / "loggers" / "csv.yaml", *settings, "--run_dir", "run")
    names = {path.name for path in Path("run").iterdir()}
    assert {"metrics.csv", "generations.csv", "val-margins.csv"} <= names
    assert not any(name.startswith("events") for name in names)


def test_a_logger_without_its_package_is_told_in_a_sentence(prefopt, settings, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    said = prefopt.fails("fit", *axes(), "-c", CONFIGS / "loggers" / "wandb.yaml", *settings)
    assert "pip install 'pl-prefopt[loggers]'" in said


@pytest.mark.parametrize("file", sorted((CONFIGS / "ready").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_file_parses_alone(prefopt, file):
    whole = yaml.safe_load(prefopt("fit", "-c", file, "--print_config"))
    assert whole["model"]["init_args"]["objective"]
    assert whole["data"]["train"]


def test_method_and_hardware_merge_in_either_order(prefopt, settings):
    base, method, hardware = axes()[1::2]
    one = prefopt("fit", "-c", base, "-c", method, "-c", hardware, *settings, "--print_config")
    other = prefopt("fit", "-c", base, "-c", hardware, "-c", method, *settings, "--print_config")
    assert yaml.safe_load(one) == yaml.safe_load(other)


MISTAKES = {
    "no such file": (["--data.train", "nope.jsonl"], "nope.jsonl"),
    "no such model": (["--model.init_args.policy.name", "nope/nothing"], "'nope/nothing'"),
    "no references": (["--references.members", "[]"], "DPO needs exactly 1 reference"),
    "lora typo": (["--model.init_args.policy.lora.rank", "4"], "no setting 'rank'"),
    "setting typo": (["--data.trian", "x"], "did you mean 'data.train'"),
    "wrong number": (["--data.batch_size", "0"], "batch_size"),
    "out of range": (["--model.init_args.objective.init_args.beta", "-1"], "beta"),
    "missing checkpoint": (["--ckpt_path", "runs/none.ckpt"], "runs/none.ckpt is missing"),
    "negative rate": (["--model.init_args.optimizer.lr", "-1"], "Invalid learning rate: -1.0"),
    "negative warm-up": (["--model.init_args.schedule.warmup", "-1"], "schedule.warmup"),
    "no batches a step": (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches"),
    "empty checkpoint": (["--ckpt_path", ""], "got nothing"),
    "wrong family": (
        ["--model.init_args.objective", "pl_prefopt.objectives.SimPO"],
        "ReferenceObjective",
    ),
    "no such class": (["--model.init_args.objective", "pl_prefopt.objectives.DPPO"], "DPPO"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_without_a_traceback(prefopt, settings, mistake):
    arguments, expected = MISTAKES[mistake]
    assert expected in prefopt.fails("fit", *axes(), *settings, *arguments)


def test_a_bad_row_is_named(prefopt, settings):
    write_rows(Path("bad.jsonl"), [*scored_rows(2), {"prompt": "Say yes.", "chosen": "Yes.", "rejected": ""}])
    said = prefopt.fails("fit", *axes(), *settings, "--data.train", "bad.jsonl")
    assert "bad.jsonl, row 3" in said


def test_help_and_unknown_commands(prefopt):
    assert "usage: prefopt" in prefopt()
    assert "export" in prefopt("--help")
    assert "did you mean 'fit'" in prefopt.fails("fitt")
    assert "needs a configuration, a model and rows" in prefopt.fails("fit")


def test_export_says_what_it_misses(prefopt, run):
    assert "is missing" in prefopt.fails("export", "run/checkpoints/none.ckpt", "--out", "somewhere")
    for folder in ("run", "run/checkpoints"):
        said = prefopt.fails("export", folder, "--out", "somewhere")
        assert f"{folder} is a folder: name one of those in it: run/checkpoints/best.ckpt, run/" in said
    Path("empty").mkdir()
    assert "name one of a run; there is none in it" in prefopt.fails("export", "empty", "--out", "somewhere")
    said = prefopt.fails("export", "run/checkpoints/last.ckpt", "--out", "run/config.yaml/below/it")
    assert "Expected --out to be a new folder, but run/config.yaml is a file." in said
    Path("there").mkdir()
    assert "exists" in prefopt.fails("export", "run/checkpoints/last.ckpt", "--out", "there")
    shutil.move("run/config.yaml", "config.yaml")
    assert "--config" in prefopt.fails("export", "run/checkpoints/last.ckpt", "--out", "somewhere")
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "somewhere", "--config", "config.yaml")


def test_export_says_what_is_damaged_or_does_not_fit(prefopt, run):
    def said(content, file="config.yaml"):
        before = (run / file).read_bytes()
        (run / file).write_bytes(content(before))
        said = prefopt.fails("export", "run/checkpoints/last.ckpt", "--out", "somewhere")
        (run / file).write_bytes(before)
        assert not Path("somewhere").exists()
        return said

    for damaged in (b"", b"a: [", b"\xff\xfe", b"model: {init_args: {}}", b"model: 3"):
        assert "was not written by `prefopt fit`" in said(lambda _, damaged=damaged: damaged)
    assert "made with policy.lora" in said(lambda before: before.replace(b" r: 16", b" r: 2"))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["pl_prefopt"]  # as an earlier version left it
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    assert "has the shape [16, " in said(lambda before: before.replace(b" r: 16", b" r: 2"))
    more = b"target_modules: [q_proj, lm_head]"
    assert "is unknown" in said(lambda before: before.replace(b"target_modules: all-linear", more))
    every = b"[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head]"
    assert "lacks '" in said(lambda before: before.replace(b"all-linear", every))
    assert "metrics.json can't be read" in said(lambda before: before[:50], "metrics.json")


def test_help_needs_no_torch():
    import subprocess
    import sys

    script = (
        "import sys; sys.argv = ['prefopt', '--help']\n"
        "from pl_prefopt.cli.main import main; main()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_gguf_policy_trains_and_is_exported_for_plain_transformers(prefopt, settings, tmp_path):
    pytest.importorskip("gguf")
    Path("gguf").mkdir()
    name = write_tiny_gguf(tmp_path / "gguf")
    policy = ["--model.init_args.policy.name", "gguf", "--model.init_args.policy.gguf_file", name]
    prefopt("fit", *axes(), *settings, *policy, "--run_dir", "run")
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "merged", "--merge", "true")
    assert AutoModelForCausalLM.from_pretrained("merged").config.vocab_size > 300
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "adapter")
    assert Path("adapter/adapter_model.safetensors").is_file()


def test_a_four_bit_policy_trains_and_merges_into_full_precision(
    cpu_of_bitsandbytes, prefopt, settings, tiny_model
):
    policy = ["--model.init_args.policy.four_bit", '{"compute": "float32"}']
    prefopt("fit", *axes(), *settings, *policy, "--run_dir", "run")
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "adapter")
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "merged", "--merge", "true")
    merged, base = (load_file(Path(folder) / "model.safetensors") for folder in ("merged", tiny_model))
    learned = load_file("adapter/adapter_model.safetensors")
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    name = "model.layers.1.mlp.up_proj"
    low, high = (learned[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert high.abs().max() > 0
    torch.testing.assert_close(
        merged[f"{name}.weight"], base[f"{name}.weight"] + config["lora_alpha"] / config["r"] * high @ low
    )


def test_precompute_scores_and_leaves_only_the_tables(prefopt, settings, tiny_model):
    member = '[{"class_path": "pl_prefopt.references.FrozenModel", "init_args": {"model": {"name": "%s"}}}]'
    reference = ["--references.members", member % tiny_model]
    printed = prefopt("precompute", *axes(), *settings, *reference)
    (folder,) = Path(".cache/pl_prefopt/references").iterdir()
    assert f"Log-probs are in {folder}" in printed
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert not Path("runs").exists()
    # On another machine the table stands in for the model.
    shutil.move(folder, "table")
    table = '[{"class_path": "pl_prefopt.references.PrecomputedTable", "init_args": {"folder": "table"}}]'
    prefopt("fit", *axes(), *settings, "--references.members", table, "--run_dir", "run")
    assert "val/margin" in metrics_of("run")


def test_what_lightning_refuses_is_said_in_a_sentence(settings, prefopt):
    bars = ["--trainer.callbacks+", "TQDMProgressBar", "--trainer.callbacks+", "RichProgressBar"]
    said = prefopt.fails("fit", *axes(), *settings, *bars)
    assert "Lightning rejects the trainer's settings: You added multiple progress bar callbacks" in said


@pytest.mark.parametrize(("asked", "meant"), [("val/acc", "val/accuracy"), ("loss", "val/loss")])
def test_a_misspelt_monitor_is_refused_before_the_first_step(prefopt, settings, asked, meant):
    said = prefopt.fails("fit", *axes(), *settings, "--run_dir", "run", "--best.monitor", asked)
    assert f"nothing logs `best.monitor`, '{asked}', in a validation; did you mean '{meant}'?" in said
    assert "Epoch 0" not in said


def test_a_run_without_what_is_monitored_ends_with_its_last_checkpoint(prefopt, settings, tmp_path):
    singles = [{"prompt": f"{n}?", "completion": f"{n}.", "label": n % 2 == 0} for n in range(8)]
    rows = write_rows(tmp_path / "singles.jsonl", singles)
    printed = prefopt("fit", *axes("kto"), *settings, "--data.train", rows, "--run_dir", "run")
    assert re.search(
        "Warning: .*'val/accuracy' was not measured.* val/kl, val/log_ratio_0, val/loss", printed
    )
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"last.ckpt"}


def test_switches_of_the_trainer_win_over_configured_callbacks(prefopt, settings):
    off = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
    printed = prefopt("fit", *axes(), *settings, *off, "--run_dir", "run")
    assert "Epoch 0" not in printed
    assert "Trainable params" not in printed
    assert "tokens_per_second" in Path("run/metrics.csv").read_text()  # the other callbacks are there


def test_a_run_without_checkpoints_is_refused(prefopt, settings):
    said = prefopt.fails("fit", *axes(), *settings, "--trainer.enable_checkpointing", "false")
    assert "`trainer.enable_checkpointing: false` would discard the trained policy" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected preference rows in other.jsonl, got no usable one, it is empty"),
        ("\n \n", "expected preference rows in other.jsonl, got no usable one, it is empty"),
        ('{"path": "rows.jsonl"}\n', "other.jsonl, row 1: expected the keys of one of the layouts"),
    ],
    ids=["empty", "blank", "settings"],
)
def test_a_file_of_data_is_never_read_as_settings(prefopt, settings, tmp_path, content, expected):
    (tmp_path / "other.jsonl").write_text(content)
    assert expected in prefopt.fails("fit", *axes(), *settings, "--data.train", "other.jsonl")

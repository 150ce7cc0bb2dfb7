"""``pl_prefopt.fit``: the command's run, from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as sharded
import yaml

import pl_prefopt as pp
from pl_prefopt.cli.from_python import Run
from pl_prefopt.cli.object_settings import settings_of
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.evaluations import Evaluation, add_evaluation, read_evaluations
from pl_prefopt.heads import MixtureHead
from pl_prefopt.modules import PeerRewardModule, read_checkpoint
from pl_prefopt.modules.loading import arguments_of
from pl_prefopt.report import read_runs
from pl_prefopt.saved_settings import portable
from tests.method_files import one_of_each_family
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows, write_rows

QUIET = {"data.batch_size": 2, "default_callbacks": False}


def weights(folder):
    return read_checkpoint(Path(folder) / "checkpoints" / "last.ckpt")["state_dict"]


def settings(folder):
    saved = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    return {key: value for key, value in saved.items() if key != "run_dir"}


def test_fit_trains_as_the_command_does(prefopt, tiny_model):
    rows = scored_rows()
    write_rows(Path("rows.jsonl"), rows)
    prefopt(
        *("fit", "-c", "methods/dpo", "-c", "hardware/cpu", "--policy", tiny_model, "--lr", "0.01"),
        *("--data.train", "rows.jsonl", "--model.objective.beta", "0.3", "--run_dir", "command"),
        *("--data.batch_size", "2", "--default_callbacks", "false"),
    )
    options = {"lr": 0.01, "configs": ["hardware/cpu"], "settings": QUIET, "run_dir": "python"}
    run = pp.fit(str(tiny_model), "rows.jsonl", pp.DPO(beta=0.3), **options)
    assert settings(run.folder) == settings("command")
    assert settings("command")["model"]["init_args"]["objective"]["init_args"]["beta"] == 0.3
    wanted = weights("command")
    for name, weight in weights(run.folder).items():
        assert torch.equal(weight, wanted[name]), name
    files = {path.name.split(".0")[0][:18] for path in Path("command").iterdir()}
    assert {path.name.split(".0")[0][:18] for path in run.folder.iterdir()} == files
    assert run.metrics["val/accuracy"] >= 0
    assert run.checkpoint == run.folder / "checkpoints" / "best.ckpt"

    # A module is loaded from the run without a trainer and without arguments.
    module = pp.DPOModule.load_from_checkpoint("python/checkpoints/last.ckpt")
    assert module.objective.beta == 0.3
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, wanted[name]), name
    assert module.make_optimizer([torch.nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.01
    datamodule = pp.PreferenceDataModule(predict="rows.jsonl", batch_size=2)
    trainer = make_trainer(Path("elsewhere"), pp.ReferenceEnsemble([pp.InitialPolicy()]))
    predicted = trainer.predict(module, datamodule)
    scored, outcome = predicted[0]
    assert (outcome.reward.abs() > 1e-4)[scored.present].any()
    alone = pp.DPOModule.load_from_checkpoint("python/checkpoints/last.ckpt")
    batch = datamodule.datasets["predict"].batch(range(6))
    with torch.no_grad():
        found = alone.score(batch).policy.sum[batch.present]
    expected = torch.cat([one.policy.sum[one.present] for one, _ in predicted])  # in another order
    torch.testing.assert_close(found.sort().values, expected.sort().values)
    prompt = alone.load_tokenizer()("Say yes.", return_tensors="pt")
    assert alone.policy.generate(**prompt, max_new_tokens=3, min_new_tokens=3).shape[1] > 3

    # Sharded weights are in a folder.
    content, folder = read_checkpoint(Path("python/checkpoints/last.ckpt")), "python/checkpoints/shards.ckpt"
    sharded.save({"state_dict": content.pop("state_dict")}, checkpoint_id=folder, no_dist=True)
    torch.save(content, Path(folder, "meta.pt"))
    for name, weight in pp.DPOModule.load_from_checkpoint(folder).state_dict().items():
        assert torch.equal(weight, wanted[name]), name

    # Rows in memory are kept in the run's folder.
    kept = pp.fit(
        pp.PolicySpec(name=str(tiny_model), dtype="float32", lora={"r": 16, "target_modules": "all-linear"}),
        rows,
        {"class_path": "DPO", "init_args": {"beta": 0.3}},
        references=[pp.AdapterOff()],
        run_dir="kept",
        settings={
            **QUIET,
            "trainer.accelerator": "cpu",
            "data.held_out": 0,
            "data.max_response_length": None,
        },
    )
    assert settings("kept")["data"]["train"] == "kept/train.jsonl"
    assert settings("kept")["data"]["max_response_length"] is None  # 1024 by default
    assert kept.metrics == {}
    with pytest.raises(ConfigError, match="already contains a run"):
        pp.fit(str(tiny_model), rows, run_dir="kept")


def test_a_fit_that_does_not_begin_leaves_no_rows(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no setting 'trainer\.max_stepz'"):
        pp.fit(str(tiny_model), scored_rows(), run_dir="run", settings={"trainer.max_stepz": 1})
    assert not Path("run").exists()
    with pytest.raises(ConfigError, match="got a data module"):
        pp.fit(str(tiny_model), pp.PreferenceDataModule("rows.jsonl"))
    with pytest.raises(ConfigError, match="a PolicySpec, got int"):
        pp.fit(3, "rows.jsonl")
    rows = [*scored_rows(), {"prompt": "Hi", "chosen": "a", "rejected": "b", "id": 10**5000}]
    with pytest.raises(
        DataError, match=r"rows in memory, row \d+: a value that can't be read .* remove the row"
    ):
        pp.fit(str(tiny_model), rows, run_dir="run")
    rows[-1]["id"] = "\ud800"
    with pytest.raises(DataError, match=r"train\.jsonl, row \d+: not UTF-8"):
        pp.fit(str(tiny_model), rows, run_dir="run")


class Doubling(pp.DPO):
    def __init__(self, beta=0.1):
        super().__init__(beta=2 * beta)


class Forgetful(pp.DPO):
    def __init__(self, beta=0.1, start=0):
        super().__init__(beta=beta)


def test_objects_have_the_settings_of_their_configurations():
    from pl_prefopt.cli.parser import Parser
    from pl_prefopt.objectives import Objective

    parser = Parser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    for file in one_of_each_family():
        given = yaml.safe_load(file.read_text())["model"]["init_args"]["objective"]
        parsed = parser.parse_object({"objective": given})
        built = parser.instantiate_classes(parsed).objective
        again = parser.parse_object({"objective": settings_of(built)})
        assert again.as_dict() == parsed.as_dict(), file
    for made, told in ((Doubling(), "changes its arguments"), (Forgetful(), "its argument 'start'")):
        with pytest.raises(ConfigError, match=told):
            settings_of(made)


def test_the_best_checkpoint_is_validated_without_a_command(tiny_model, tmp_path):
    module = pp.DPOModule(lora_spec(tiny_model), pp.DPO(), optimizer=lambda some: torch.optim.SGD(some, lr=1))
    best = pp.BestCheckpoint(monitor="val/loss", mode="min", dirpath=tmp_path / "best")
    callbacks = [pp.ReferenceEnsemble([pp.InitialPolicy()]), best]
    trainer = make_trainer(
        tmp_path, *callbacks, plugins=[pp.SafeCheckpointIO()], max_epochs=2, enable_checkpointing=True
    )
    data = make_datamodule(tmp_path)
    trainer.fit(module, datamodule=data)
    measured = trainer.validate(module, datamodule=data, ckpt_path="best", verbose=False)
    assert measured[0]["val/loss"] == pytest.approx(best.best_model_score.item())


def test_all_arguments_of_a_run_are_read(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "rm"
    for folder in (run / "checkpoints", tmp_path / "first"):
        folder.mkdir(parents=True)
    own = {
        "policy": {"name": "first"},
        "objective": {"class_path": "pl_prefopt.objectives.RewardMixture"},
        "reward_head": {"class_path": "pl_prefopt.heads.MixtureHead", "init_args": {"parts": 3}},
        "head_from": "first",
        "keep_rate": 0.5,
    }
    others = {name: {} for name in ("trainer", "data", "references", "best", "last")}
    monkeypatch.chdir(tmp_path)
    saved = portable({**others, "model": {"init_args": own}, "run_dir": "runs/rm"}, run)
    (run / "config.yaml").write_text(yaml.safe_dump(saved, sort_keys=False))
    monkeypatch.chdir(run)  # paths are found from any folder
    found = arguments_of(PeerRewardModule, run / "checkpoints" / "last.ckpt", {"objective": "given"})
    assert (found["reward_head"].settings(), found["keep_rate"]) == (MixtureHead(parts=3).settings(), 0.5)
    assert found["objective"] == "given"
    assert Path(found["head_from"]).resolve() == Path(found["policy"].name).resolve() == tmp_path / "first"


def test_a_module_is_loaded_from_runs_only(tmp_path, tiny_model):
    with pytest.raises(ConfigError, match="Expected a checkpoint"):
        pp.DPOModule.load_from_checkpoint(tmp_path / "none.ckpt")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ConfigError, match=r"There is no config\.yaml of a run"):
        pp.DPOModule.load_from_checkpoint(path)
    spec = pp.PolicySpec(name=str(tiny_model), lora={"target_modules": "all-linear"})
    with pytest.raises(ConfigError, match="The checkpoint lacks 28 of the 28 weights"):
        pp.DPOModule.load_from_checkpoint(path, policy=spec, objective=pp.DPO())
    torch.save({"state_dict": {}, "more": Path("a class")}, path)
    with pytest.raises(ConfigError, match="holds code instead of plain weights"):
        pp.DPOModule.load_from_checkpoint(path, policy=spec, objective=pp.DPO())


def test_a_run_s_metrics_are_not_those_of_the_policy_before_training(tmp_path):
    run = Run(tmp_path, None, None)
    for step, metrics in ((0, {}), (4, {"val/loss": 4.0})):
        add_evaluation(
            tmp_path / "metrics.json", Evaluation(metrics={"val/loss": float(step)}, command="fit", step=step)
        )
        assert run.metrics == metrics


def test_a_run_stops_early(prefopt, tiny_model):
    rows = write_rows(Path("rows.jsonl"), scored_rows(2))
    early = "early_stop: {patience: 2, min_delta: 9}\nvalidate_first: true\n"  # nothing improves by 9
    Path("early.yaml").write_text(early)
    fit = ("fit", "-c", "methods/dpo", "-c", "hardware/cpu", "--policy", tiny_model, "--lr", "0.01")
    fit += ("--default_callbacks", "false", "--data.train", rows, "-c", "early.yaml", "--run_dir", "run")
    assert "`early_stop` needs validations" in prefopt.fails(*fit, "--data.held_out", "0")
    assert "patience" in prefopt.fails(*fit, "--early_stop.patience", "0")
    first = prefopt.fails(*fit, "--early_stop", "null", "--data.held_out", "0")
    assert "`validate_first` needs rows to validate on: set data.val or data.held_out" in first
    prefopt(*fit, "--data.val", rows, "--trainer.max_epochs", "9")
    saved = read_checkpoint(Path("run/checkpoints/last.ckpt"))
    assert saved["epoch"] == 1  # of 0 to 8: nothing improves on the validation before the first step
    before, after = read_evaluations(Path("run/metrics.json"))
    assert (before.step, after.step) == (0, saved["global_step"])
    assert before.metrics["val/accuracy"] == 0.5  # the policy still equals its reference
    assert before.metrics["val/loss"] != after.metrics["val/loss"]
    (run,) = read_runs([Path("run")])
    assert run.before_training("val") == before
    assert run.evaluation("val") == after
    assert 0 in run.curves["val/loss"].steps
    assert read_checkpoint(Path("run/checkpoints/best.ckpt"))["global_step"] > 0
    assert settings("run")["early_stop"] == {"patience": 2, "min_delta": 9.0}

    # Without the first validation a patience of 1 ends it as early, and the weights are the same.
    without = ("--validate_first", "false", "--early_stop.patience", "1", "--run_dir", "without")
    prefopt(*fit, "--data.val", rows, "--trainer.max_epochs", "9", *without)
    for name, weight in weights("without").items():
        assert torch.equal(weight, saved["state_dict"][name]), name

"""The settings of rounds: the files of configs/rounds, stages, and where policies and references are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd

import __main__
from pl_prefopt.cli.config_diagnostics import check_command
from pl_prefopt.cli.config_files import with_paths
from pl_prefopt.cli.rounds import _be, _command, read_rounds
from pl_prefopt.errors import ConfigError
from pl_prefopt.functional import games
from pl_prefopt.objectives.examples import example
from pl_prefopt.rounds import OptimizerState, fit_settings, stage_named, stages_of
from pl_prefopt.rounds.plan import Policies, merged_settings
from tests.scripts.study_scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "rounds").glob("*.yaml"))


def rounds(**changes):
    raw = yaml.safe_load((ROOT / "configs/rounds/online_dpo.yaml").read_text())
    return read_rounds("online_dpo.yaml", {**raw, **changes})


def adapter(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_files_are_rounds_whose_fit_is_accepted(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = read_rounds(str(file), yaml.safe_load(file.read_text(encoding="utf-8")))
    settings = replace(read, out=str(tmp_path / "out"), policy=str(tmp_path))
    (tmp_path / "out/round-1/select/rows").mkdir(parents=True)
    (tmp_path / "out/round-1/select/rows/part-00000.jsonl").write_text("{}\n")
    made = merged_settings(settings.fit.settings, fit_settings(settings, 1))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(made))
    configs = [word for name in (*settings.fit.config, "fit.yaml") for word in ("-c", name)]
    check_command("fit", with_paths(["fit", *configs])[1:])


def test_references_are_the_policies_that_the_settings_name(tmp_path):
    out = str(tmp_path)
    settings = rounds(out=out, policy="base", references=["start", "initial", "average"], average=0.5)
    initial = {"class_path": "pl_prefopt.references.InitialPolicy"}
    first = fit_settings(settings, 1)
    assert first["model"]["init_args"]["policy"] == {"name": "base"}
    assert first["references"]["members"] == [initial] * 3
    trained, average = adapter(tmp_path / "round-1/export"), adapter(tmp_path / "round-1/average")
    second = fit_settings(settings, 2)
    assert second["model"]["init_args"]["policy"] == {"name": "base", "adapter": trained, "lora": None}
    start, base, mean = second["references"]["members"]
    assert start == initial
    assert base["init_args"]["model"] == {"name": "base"}
    assert mean["init_args"]["model"] == {"name": "base", "adapter": average}
    anew = fit_settings(replace(settings, start="initial", references=["start", "previous"]), 2)
    assert anew["model"]["init_args"]["policy"] == {"name": "base"}
    assert anew["references"]["members"][0] == initial
    assert anew["references"]["members"][1]["init_args"]["model"]["adapter"] == trained


def test_two_rounds_are_one_iteration_from_a_centre(tmp_path):
    settings = rounds(
        out=str(tmp_path), policy="base", rounds=4, start="centre", references=["centre", "initial"]
    )
    settings = replace(settings, fit=replace(settings.fit, keep_optimizer=True))
    trained = [adapter(tmp_path / f"round-{number}/export") for number in (1, 2, 3)]
    starts, samplers, kept = [], [], []
    for number in (1, 2, 3, 4):
        made = fit_settings(settings, number)
        starts.append(made["model"]["init_args"]["policy"].get("adapter"))
        samplers.append(Policies(settings).sampling(number).adapter)
        kept += [one["init_args"]["checkpoint"] for one in made.get("trainer", {}).get("callbacks", [])]
        assert made["references"]["members"][0]["class_path"].endswith("InitialPolicy")
    assert starts == [None, None, trained[1], trained[1]]
    assert samplers == [None, *trained]
    assert kept == [str(tmp_path / "round-2/fit/checkpoints/last.ckpt")] * 2
    with pytest.raises(ConfigError, match="expected an even number, got 3"):
        replace(settings, rounds=3)


def test_a_round_knows_what_the_files_of_its_fit_say(tmp_path):
    mine = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [mine]}, "data": {"template": "plain"}}))
    settings = rounds(
        out=str(tmp_path / "out"),
        policy="base",
        references=["start", "initial"],
        fit={"config": ["base", str(file)], "keep_optimizer": True},
    )
    adapter(tmp_path / "out/round-1/export")
    words = _command(settings, stage_named("2/fit", settings), "rounds.yaml", allow_commands=False)
    made = yaml.safe_load(Path(words[words.index("--ckpt_path") - 1]).read_text())
    callbacks = [one["class_path"] for one in made["trainer"]["callbacks"]]
    assert callbacks == [mine["class_path"], "pl_prefopt.rounds.OptimizerState"]
    assert made["references"]["members"][1]["init_args"]["template"] == "plain"
    own_file = fit_settings(settings, 2, {"data": {"template": "mine.jinja"}})
    assert own_file["references"]["members"][1]["init_args"]["template"] == "auto"


def test_a_forked_stage_starts_other_ranks_as_the_command_line_does(monkeypatch):
    monkeypatch.setattr(__main__, "__spec__", None)  # as the script `prefopt` leaves it
    monkeypatch.setattr(sys, "argv", ["prefopt", "rounds", "-c", "rounds.yaml"])
    monkeypatch.setattr("pl_prefopt.cli.main.main", lambda: None)
    _be(["fit", "-c", "fit.yaml"])
    assert _basic_subprocess_cmd() == [sys.executable, "-m", "pl_prefopt.__main__", "fit", "-c", "fit.yaml"]


def regression(name):
    """Return the objective of a file."""
    raw = yaml.safe_load((ROOT / f"configs/rounds/{name}.yaml").read_text(encoding="utf-8"))
    return load_script("study").build_objective(raw["fit"]["settings"]["model"]["init_args"]["objective"])


def test_the_regressions_are_solved_by_the_closed_forms():
    torch.manual_seed(0)
    preferences = torch.rand(4, 4)
    preferences = (preferences + 1 - preferences.T) / 2
    centre, reference = torch.randn(2, 4).log_softmax(-1)
    beta, eta = 0.1, 0.2
    half = games.proximal_step(centre, centre, preferences, reference, beta=beta, eta=eta)
    rates = games.win_rates_against(preferences, centre).tolist()
    solved = regression("nash_mp")(example(half.tolist(), centre.tolist(), reference.tolist(), scores=rates))
    assert solved.loss.item() == pytest.approx(0, abs=1e-10)
    other = regression("nash_mp")(example(centre.tolist(), centre.tolist(), reference.tolist(), scores=rates))
    assert other.loss.item() > 1e-3
    aim = (reference + torch.tensor(rates) / beta).log_softmax(-1)
    assert regression("egpo")(example(aim.tolist(), reference.tolist(), scores=rates)).loss.item() < 1e-9


def test_an_optimiser_goes_on_with_the_state_of_another_run(tmp_path):
    def optimiser(parameter, lr=0.1):
        return torch.optim.AdamW([parameter], lr=lr)

    def step(made, parameter, gradient):
        parameter.grad = torch.full_like(parameter, gradient)
        made.step()

    first = torch.nn.Parameter(torch.ones(3))
    made = optimiser(first)
    step(made, first, 2.0)
    torch.save({"optimizer_states": [made.state_dict()]}, tmp_path / "last.ckpt")
    second = torch.nn.Parameter(first.detach().clone())
    again = optimiser(second, lr=0.05)
    trainer = SimpleNamespace(global_step=0, optimizers=[again])
    OptimizerState(str(tmp_path / "last.ckpt")).on_train_start(trainer, None)
    assert again.param_groups[0]["lr"] == 0.05
    again.param_groups[0]["lr"] = 0.1
    step(made, first, -1.0)
    step(again, second, -1.0)
    assert torch.equal(first, second)
    trainer = SimpleNamespace(global_step=0, optimizers=[optimiser(torch.nn.Parameter(torch.ones(2)))])
    with pytest.raises(ConfigError, match="of other parameters"):
        OptimizerState(str(tmp_path / "last.ckpt")).on_train_start(trainer, None)


def test_stages_and_settings_that_cannot_work():
    settings = rounds(rounds=1)
    assert [str(stage) for stage in stages_of(settings)] == [
        "0/held_out",
        "0/judge",
        "0/measure",
        "1/sample",
        "1/label",
        "1/select",
        "1/fit",
        "1/export",
        "1/held_out",
        "1/judge",
        "1/measure",
    ]
    with pytest.raises(ConfigError, match="got '1/fitt'; did you mean '1/fit'"):
        stage_named("1/fitt", settings)
    for changes, said in (
        ({"rounds": 0}, "`rounds` to be at least 1"),
        ({"references": ["average"]}, "needs the setting `average`"),
        ({"replay": 2.0}, "a share from 0 to 1"),
        ({"momentum": 0.3, "start": "initial"}, "set `start: previous`"),
        (
            {"select": {"class_path": "pl_prefopt.rounds.SoftPairs", "init_args": {"temperature": 0}}},
            "above 0",
        ),
        ({"fit": {"config": ["base"], "settings": 3}}, "`fit.settings` to be a section"),
        ({"unknown": 1}, "unknown"),
    ):
        with pytest.raises(ConfigError, match=said):
            rounds(**changes)

"""`prefopt sweep` on a tiny model, its runs in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from pl_prefopt.cli import sweep as command
from pl_prefopt.cli.config_files import find
from pl_prefopt.errors import ConfigError
from pl_prefopt.evaluations import Evaluation, add_evaluation
from pl_prefopt.processes import run_watched
from pl_prefopt.yaml_files import read_yaml
from tests.docs.pages import ROOT, first
from tests.runs import pair_rows, write_rows

SETTINGS = {
    "config": ["base", "methods/dpo", "hardware/cpu"],
    "search": {"lr": [1.0e-3, 1.0e-2], "model.objective.beta": {"low": 0.1, "high": 0.5}},
    "trials": 2,
    "metric": "val/loss",
    "mode": "min",
    "checkpoints": "best",
}


def write(folder, model, **changes):
    settings = {
        "model": {"init_args": {"policy": {"name": str(model)}}},
        "data": {"train": "rows.jsonl", "held_out": 2, "batch_size": 2},
        "trainer": {"max_steps": 2, "val_check_interval": 1},
        "default_callbacks": False,
    }
    whole = {"out": "swept", "settings": settings, **SETTINGS, **changes}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(whole))
    write_rows(folder / "rows.jsonl", pair_rows(6))


def run_here(words, log, is_enough):
    """Do as ``run_watched`` with a command of ours."""
    from pl_prefopt.cli.main import _run

    log.parent.mkdir(parents=True, exist_ok=True)
    _run(list(words[3:]))
    return None if is_enough() else 0


def test_two_trials_with_a_table_and_the_best_checkpoint(prefopt, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(command, "run_watched", run_here)
    write(tmp_path, tiny_model)
    printed = prefopt("sweep", "-c", "sweep.yaml")
    assert "2 of 2 trials have ended: 2 complete." in printed
    assert "prefopt report swept/trial-" in printed
    values = {}
    for number in (0, 1):
        folder = tmp_path / "swept" / f"trial-{number}" / "seed-0"
        found = json.loads((folder / "metrics.json").read_text())["evaluations"]
        values[number] = found[-1]["metrics"]["val/loss"]
        saved = yaml.safe_load((folder / "config.yaml").read_text())
        assert saved["best"]["monitor"] == "val/loss"
        beta = saved["model"]["init_args"]["objective"]["init_args"]["beta"]
        assert f"{beta:.6g}" in printed
    kept = [number for number in (0, 1) if (tmp_path / f"swept/trial-{number}/seed-0/checkpoints").is_dir()]
    assert len(kept) == 1
    rows = [line.split() for line in printed.splitlines() if " complete " in line]
    assert int(rows[0][0]) == kept[0]
    assert float(rows[0][2]) <= float(rows[1][2])
    assert rows[0][0] in (tmp_path / "swept/sweep.html").read_text()

    # The policy before training is no trial's best, however good its value; that after the first step may be.
    counted = command._Trials(command.read_sweep("sweep.yaml", read_yaml(Path("sweep.yaml"))))._values
    after = counted(folder)
    assert len(after) == 2
    curve = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    names = curve[0].strip().split(",")
    first = ",".join({"step": "0", "val/loss": "-1"}.get(name, "") for name in names)
    (folder / "metrics.csv").write_text("".join([curve[0], first + "\n", *curve[1:]]))
    assert counted(folder) == [-1, *after]
    untrained = Evaluation(metrics={"val/loss": -1.0}, command="fit", step=0)
    add_evaluation(folder / "metrics.json", untrained)
    assert counted(folder) == after

    write(tmp_path, tiny_model, seeds=[4])
    assert "swept has trials with another `seeds` (None, and now [4])" in prefopt.fails(
        "sweep", "-c", "sweep.yaml"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"search": {"model.objective.betta": [0.1, 0.2]}},
            "DPO has no setting 'betta'; did you mean 'beta'?",
        ),
        ({"search": {"trainer.max_steps": [5, "many"]}}, "trainer.max_steps: expected a whole number"),
        (
            {"settings": {"trainer": {"max_step": 1}}},
            "sweep.yaml, settings: there is no setting 'trainer.max_step'",
        ),
        ({"metric": "val/accuracy", "mode": "min"}, "higher values of val/accuracy are better"),
        ({"settings": {"trainer": {"logger": False}}}, "remove `trainer.logger: false`"),
        ({"trails": 3}, "'trails'"),
    ],
)
def test_bad_settings_are_told_before_the_first_trial(prefopt, tmp_path, tiny_model, changes, said):
    write(tmp_path, tiny_model, **changes)
    printed = prefopt.fails("sweep", "-c", "sweep.yaml")
    assert said in printed
    assert not (tmp_path / "swept").exists()


def test_the_configuration_and_the_page_s_settings_are_a_sweep():
    shown = yaml.safe_load(first(ROOT / "docs/sweeps.md", "yaml"))
    shipped = read_yaml(Path(find("sweeps/dpo")))
    for given in (shown, shipped):
        found = command.read_sweep("sweep.yaml", given)
        assert found.count == given["trials"]
        assert found.metric == "val/accuracy"


def test_a_watched_command_is_stopped_or_ends(tmp_path):
    wait = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    log = tmp_path / "log"
    assert run_watched(wait, log, lambda: "begun" in log.read_text(), every=0.05) is None
    assert run_watched([sys.executable, "-c", "exit(3)"], log, lambda: False, every=0.05) == 3


def test_a_renamed_metric_is_the_same_sweep(tmp_path):
    (tmp_path / "trial-0" / "seed-0").mkdir(parents=True)
    (tmp_path / "trial-0" / "seed-0" / "config.yaml").touch()
    (tmp_path / "sweep.json").write_text(json.dumps({"metric": "val/kl_0"}))
    command._accept(tmp_path, {"metric": "val/log_ratio_0"})
    with pytest.raises(ConfigError, match="has trials with another `metric`"):
        command._accept(tmp_path, {"metric": "val/log_ratio_1"})

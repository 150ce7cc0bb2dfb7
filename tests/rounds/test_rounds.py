"""Two rounds on a tiny model: killed anywhere and started again, they end as an uninterrupted run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pl_prefopt.rounds.plan import merged_settings
from tests.cli.interrupted import Runs
from tests.runs import PROMPTS, write_rows
from tests.support import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
VOWELS = {"class_path": "pl_prefopt.judges.Rule", "init_args": {"function": "tests.rounds.rules.vowels"}}
SETTINGS = {
    "rounds": 2,
    "prompts": "prompts.jsonl",
    "policy": "model",
    "judge": {
        "class_path": "pl_prefopt.rounds.ConstrainedScores",
        "init_args": {"judges": [VOWELS, VOWELS], "thresholds": [0.0, 1.0], "learning_rate": 10.0},
    },
    "sampling": {"n": 3, "max_new_tokens": 6},
    "batch_size": 2,
    "select": {"class_path": "pl_prefopt.rounds.BestAgainstWorst"},
    "references": ["start"],
    "replay": 0.5,
    "momentum": 0.5,
    "average": 0.5,
    "fit": {
        "config": ["base", "methods/dpo", "hardware/cpu"],
        "settings": {
            "trainer": {"logger": False, "enable_progress_bar": False},
            "default_callbacks": False,
            "data": {"held_out": 0, "batch_size": 2},
            "last": {"minutes": 0},
        },
    },
    "evaluate": {"prompts": "held_out.jsonl", "judge": VOWELS, "sampling": {"n": 1, "max_new_tokens": 6}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    save_tiny_model(folder / "model")
    write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    write_rows(folder / "held_out.jsonl", [{"prompt": f"{prompt} Why?"} for prompt in PROMPTS[:3]])
    started = Runs(folder)
    yield started
    started.close()


def write_settings(folder: Path, out: str, **changes) -> str:
    (folder / f"{out}.yaml").write_text(yaml.safe_dump({"out": out, **SETTINGS, **changes}))
    return f"{out}.yaml"


def test_killed_anywhere_rounds_end_as_uninterrupted_ones(runs):
    folder = runs.folder
    status, printed = runs("rounds", "-c", write_settings(folder, "whole"))
    assert status == 0, printed + last_log(folder / "whole")
    shutil.copytree(folder / "whole", folder / "killed")
    config, again = write_settings(folder, "killed"), ["--rerun", "2/sample"]
    for place, call, said in (
        (
            "pl_prefopt.generation.transformers_engine:TransformersEngine.sample",
            2,
            "stage 2/sample ended with signal 9",
        ),
        ("pl_prefopt.judges.rules:Rule.judge", 2, "stage 2/label ended with signal 9"),
        ("pl_prefopt.rewards.multipliers:Multipliers.update", 1, "stage 2/multipliers ended with signal 9"),
        ("pl_prefopt.rounds.state:State.finish", 2, ""),  # after 2/select
        ("torch.optim.adamw:AdamW.step", 2, "stage 2/fit ended with signal 9"),
    ):
        fault = {"place": place, "call": call, "how": "SIGKILL"}
        status, printed = runs("rounds", "-c", config, *again, fault=fault)
        assert status == (1 if said else -9), printed
        assert said in printed, printed
        assert "1/fit" not in printed
        assert not (folder / "killed/round-2/export").exists()  # what follows a stage that is rerun is gone
        again = []
    status, printed = runs("rounds", "-c", config)
    assert status == 0, printed + last_log(folder / "killed")
    same_results(folder / "whole", folder / "killed")
    measured = json.loads((folder / "killed/round-2/measure/summary.json").read_text())
    assert measured["prompts"] == 3
    assert 0 <= measured["win_rate_first"] <= 1
    assert measured["training"]["replayed"] <= measured["training"]["rows"] + 3
    first, second = (
        json.loads((folder / f"killed/round-{number}/multipliers/summary.json").read_text())
        for number in (1, 2)
    )
    assert first["rewards"]["1"]["multiplier"] == 0.5 > second["rewards"]["1"]["multiplier"]
    assert second["rewards"]["2"]["multiplier"] > 0.5  # below its threshold
    assert "Judge 2: multiplier" in (folder / "killed/report.html").read_text()
    assert "round 2" in (folder / "killed/report.html").read_text()

    changed = write_settings(folder, "killed", batch_size=3)
    status, printed = runs("rounds", "-c", changed)
    assert status == 2
    assert "killed has rounds with another `batch_size` (2, and now 3)" in printed

    ties = {
        "class_path": "pl_prefopt.judges.Rule",
        "init_args": {"function": "tests.rounds.rules.indifferent"},
    }
    few = {"max_prompts": 2, "log_probs": False, "evaluate": None}
    status, printed = runs("rounds", "-c", write_settings(folder, "tied", judge=ties, **few))
    assert status == 1
    assert "round 1 has nothing to train on: none of its 2 prompts gives a row" in printed
    assert not (folder / "tied/round-1/fit").exists()


def test_two_iterations_of_nash_mp_go_on_with_the_optimiser_of_the_policy_they_start_from(runs):
    folder = runs.folder
    raw = yaml.safe_load((ROOT / "configs/rounds/nash_mp.yaml").read_text(encoding="utf-8"))
    quick = merged_settings(SETTINGS["fit"]["settings"], {"trainer": {"max_steps": 1}})
    tiny = {key: SETTINGS[key] for key in ("prompts", "policy", "sampling", "batch_size")}
    small = {"rounds": 4, "max_prompts": 2, "judge": VOWELS, "evaluate": None, "log_probs": False}
    fit = {
        "config": ["base", "hardware/cpu"],
        "settings": merged_settings(raw["fit"]["settings"], quick),
        "keep_optimizer": True,  # as EGPO has it
    }
    (folder / "nash.yaml").write_text(yaml.safe_dump({**raw, **tiny, **small, "fit": fit, "out": "nash"}))
    status, printed = runs("rounds", "-c", "nash.yaml")
    assert status == 0, printed + last_log(folder / "nash")
    for number, steps in (
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
    ):  # rounds 3 and 4 both start from the policy of round 2
        held = torch.load(folder / f"nash/round-{number}/fit/checkpoints/last.ckpt", weights_only=True)
        assert held["optimizer_states"][0]["state"][0]["step"] == steps
        trained = load_file(folder / f"nash/round-{number}/export/adapter_model.safetensors")
        assert sum(one.abs().sum() for name, one in trained.items() if "lora_B" in name) > 0


def same_results(one: Path, other: Path) -> None:
    for name in ("round-1/sample", "round-2/sample", "round-2/label", "round-2/select/rows"):
        files = sorted(path.name for path in (one / name).glob("part-*.parquet"))
        assert files
        for file in files:
            assert (one / name / file).read_bytes() == (other / name / file).read_bytes(), name
    for name in ("export", "average", "extrapolate"):
        first, second = (
            load_file(out / "round-2" / name / "adapter_model.safetensors") for out in (one, other)
        )
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first), name
    for name in ("multipliers", "measure"):
        first, second = (
            json.loads((out / f"round-2/{name}/summary.json").read_text()) for out in (one, other)
        )
        assert first == second


def last_log(out: Path) -> str:
    logs = sorted(out.rglob("*.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text()[-3000:] if logs else ""

"""What tests need to run a policy for a few steps: rows, a datamodule, a trainer, the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.policies import PolicySpec

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": True}
NO_TEXTS = ("--default_callbacks.Generations", "false")
"""Arguments of a run whose sample generations no test looks at: they take longer than its training."""
PROMPTS = (
    "What is a fox?",
    "Name a dog.",
    "Where is Paris?",
    "Say yes.",
    "Say no, please.",
    "Who jumps over it?",
)


def scored_rows(count: int = 6, *, source: str = "") -> list[dict[str, Any]]:
    """Rows with two to four responses of different lengths, some scores tied."""
    answers = ("A quick brown one.", "Maybe.", "Sorry, I cannot help with that!", "0123456789 Paris")
    return [
        {
            "prompt": f"{PROMPTS[number % len(PROMPTS)]} {source}{number}",
            "responses": [f"{answer} {number}" for answer in answers[: 2 + number % 3]],
            "scores": [1.0 + (3 * number + 2 * place) % 7 for place in range(2 + number % 3)],
        }
        for number in range(count)
    ]


def pair_rows(count: int = 6) -> list[dict[str, str]]:
    """Pairs of plain strings."""
    return [
        {
            "prompt": f"{PROMPTS[number % len(PROMPTS)]} {number} ",
            "chosen": f"A quick brown one, {number} of them.",
            "rejected": "Sorry!" if number % 2 else "I cannot help with that, maybe.",
        }
        for number in range(count)
    ]


def rated_rows(count: int = 6) -> list[dict[str, str]]:
    """Pairs under other names than ours, with who rated them and a note."""
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    return [
        {names[key]: value for key, value in row.items()} | {"rater": f"r{number % 2}", "note": "n"}
        for number, row in enumerate(pair_rows(count))
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_datamodule(
    folder: Path, rows: list[dict[str, Any]] | None = None, **settings: Any
) -> PreferenceDataModule:
    """The same rows for training, validation, testing and prediction."""
    path = write_rows(folder / "rows.jsonl", scored_rows() if rows is None else rows)
    stages = dict.fromkeys(("train", "val", "test", "predict"), path)
    return PreferenceDataModule(**{**stages, "batch_size": 2, "cache_dir": str(folder / "cache"), **settings})


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A silent trainer on one CPU."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **settings})


def lora_spec(folder: Path, **settings: Any) -> PolicySpec:
    """A tiny policy with an adapter."""
    return PolicySpec(name=str(folder), lora=dict(LORA), **settings)


def metrics_of(folder: Path, stage: str = "val") -> dict[str, float]:
    """The numbers of a run's newest evaluation."""
    found = [one for one in read_evaluations(Path(folder) / "metrics.json") if one.stage == stage]
    return dict(found[-1].metrics)


class CommandLine:
    """Runs `prefopt` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> str:
        """Run a command that must succeed; return what it printed."""
        code, printed = self.run(*arguments)
        assert code in (0, None), printed
        return printed

    def fails(self, *arguments: object) -> str:
        """Run a command that must be refused; return what it said."""
        code, printed = self.run(*arguments)
        assert code == 2, printed
        assert "Traceback" not in printed
        return printed

    def run(self, *arguments: object) -> tuple[int | str | None, str]:
        """Run a command; return its exit status and what it printed."""
        from pl_prefopt.cli.main import main

        self.monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
        self.capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            return ended.code, "".join(self.capsys.readouterr())
        return 0, "".join(self.capsys.readouterr())

"""Run folders as training and testing leave them, with made-up numbers, so that no model needs to run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SPITE = (
    "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>\u2028<b>&amp;{{ 7 * 7 }}"
)
"""What a response may hold and what must stay text."""

SOURCES = ("forum", "school", "<i>lab</i>")


def ranked_rows(*, seed: int = 0, prompts: int = 30, skill: float = 1.0) -> list[dict[str, Any]]:
    """Predictions of graded lists: rewards that follow the scores as far as the policy's skill goes."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        responses = []
        for place in range(2 + number % 3):
            score = float((3 * number + 4 * place) % 9)
            text = f"Answer {place} to {number}. {SPITE if number % 10 == 0 else 'Plain.'}"
            reward = skill * 0.2 * score + float(generator.normal())
            responses.append(_response(text, reward, score, length=5 + int(generator.integers(40))))
        prompt = f"Question {number}?" if number else SPITE
        rows.append(_row(number, prompt, responses, graded=True, source=SOURCES[number % 3]))
    return rows


def unpaired_rows(*, seed: int = 0, prompts: int = 20) -> list[dict[str, Any]]:
    """Predictions of single responses with a verdict."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        reward = number % 2 + float(generator.normal())
        responses = [_response(f"Only answer to {number}.", reward, float(number % 2), length=7)]
        rows.append(_row(number, f"Question {number}?", responses, graded=False, source=""))
    return rows


def pair_rows(*, seed: int = 0, prompts: int = 20) -> list[dict[str, Any]]:
    """Predictions of plain pairs: an order without grades."""
    generator = np.random.default_rng(seed)
    return [
        _row(
            number,
            f"Question {number}?",
            [
                _response("Good.", float(generator.normal()), 1.0, length=3),
                _response("Bad.", float(generator.normal()), 0.0, length=9),
            ],
            graded=False,
            source="",
        )
        for number in range(prompts)
    ]


def _response(text: str, reward: float, score: float, *, length: int) -> dict[str, Any]:
    return {
        "response": text,
        "log_prob": -2.0 * length,
        "length": length,
        "reward": reward,
        "rank": 1,
        "score": score,
    }


def _row(
    number: int, prompt: str, responses: list[dict[str, Any]], *, graded: bool, source: str
) -> dict[str, Any]:
    return {
        "index": number,
        "origin": f"test.jsonl, row {number + 1}",
        "source": source,
        "graded": graded,
        "prompt": [{"role": "user", "content": prompt}],
        "responses": responses,
    }


def write_run(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    stage: str = "test",
    trained: bool = True,
    **changes: Any,
) -> Path:
    """Write a run's folder: its configuration, curves, numbers and, given ``rows``, predictions."""
    folder.mkdir(parents=True)
    objective = {"class_path": "pl_prefopt.objectives.DPO", "init_args": {"beta": 0.1}}
    config = {
        "seed_everything": 0,
        "run_dir": str(folder),
        "model": {"init_args": {"objective": objective, "optimizer": {"lr": 2e-4}}},
        "data": {"train": "train.jsonl", "val": "val.jsonl", "test": None},
        "references": {"members": [{"class_path": "pl_prefopt.references.AdapterOff"}]},
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if trained:
        write_curves(folder / "metrics.csv", range(1, 41))
        (folder / "metrics.json").write_text(json.dumps({"val/accuracy": 0.7, "val/margin": 0.4}))
    if rows is not None:
        place = folder / {"test": "test", "validate": "validate", "predict": "."}[stage]
        place.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (place / "predictions.jsonl").write_text(lines, encoding="utf-8")
        numbers = {"test/accuracy": 0.75, "test/accuracy_low": 0.6, "test/accuracy_high": 0.85}
        numbers |= {"test/margin": 0.5, "test/pearson": 0.4, "test/own_number": 3.0}
        (folder / "metrics.json").write_text(json.dumps(numbers | {"val/accuracy": 0.7, "val/margin": 0.4}))
    return folder


def write_curves(path: Path, steps: Any) -> None:
    """Write a ``metrics.csv`` as Lightning does: a row a logging, empty cells elsewhere."""
    names = ["epoch", "step", "lr-AdamW", "train/loss", "train/accuracy", "train/margin", "val/accuracy"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for step in steps:
            writer.writerow({"step": step, "lr-AdamW": 0.1})
            training = {
                "train/loss": 1 / step,
                "train/accuracy": 1 - 1 / (step + 1),
                "train/margin": step / 50,
            }
            writer.writerow({"epoch": 0, "step": step, **training})
            if step % 10 == 0:
                writer.writerow({"epoch": 0, "step": step, "val/accuracy": 0.5 + step / 100})

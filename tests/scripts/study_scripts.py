"""The scripts of the studies, and a handful of rows for them."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path

STUDIES = Path(__file__).resolve().parents[2] / "scripts" / "studies"
TINY = {
    "start_prompts": 2,
    "reference_prompts": 2,
    "train_prompts": 4,
    "held_out_prompts": 3,
    "seeds": [0, 1],
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
}
"""Settings at which a run takes a second."""


def load_script(name):
    """Run a study's file as a module; it imports `study` by the bare name."""
    if name != "study":
        sys.modules["study"] = load_script("study")
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their own module
    spec.loader.exec_module(module)
    return module


def write_graded_rows(path):
    """Write twelve prompts, every third with three responses and the others with four."""
    rows = [
        {
            "prompt": f"Say {number}.",
            "responses": [f"It is {number}.", "Maybe.", "No!", "I cannot."][: 4 - (number % 3 == 0)],
            "scores": [9.0, 5.0, 2.5, 1.0][: 4 - (number % 3 == 0)],
        }
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_table(path):
    """Return the CSV's rows by method."""
    with path.open(encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def prompts(out, split):
    """Return the prompts of a split."""
    with (out / "rows" / f"{split}.jsonl").open(encoding="utf-8") as file:
        return {json.loads(line)["prompt"] for line in file}

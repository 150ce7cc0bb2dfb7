"""The study of all objectives: what does each do to held-out rows, with the same rows and steps?

    python scripts/studies/objectives.py [--config scripts/studies/objectives.yaml]
        [--out runs/studies/objectives] [--report]

1. The rows are split by prompt: some to train on, some held out.
2. Each method of the study's list, a file of configs/methods, trains a fresh adapter with every seed, on the
   same prompts, steps and learning rate. The reference is the model without its adapter.
3. Each is tested on the held-out prompts.
4. The measurements are written to ``objectives.csv``, one line per run, for docs/methods/catalogue.md.

A run whose ``metrics.json`` exists is skipped, so an interrupted study resumes; seeds are the outer loop.
``--report`` trains nothing and writes the results of the runs that exist. Delete the folder after a change
of the YAML.
"""

from __future__ import annotations

import csv
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import study as shared
import torch
import yaml
from study import Metrics, Results, Study

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.modules import PreferenceModule, Schedule
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff

METHODS = Path(__file__).resolve().parents[2] / "configs" / "methods"
MEASURED = (
    "ranking_accuracy",
    "accuracy",
    "pearson",
    "spearman",
    "kendall",
    "log_ratio_margin_0",
    "length_bias",
)
"""The metrics of the table; all of them are those of ``prefopt validate``."""


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the study and write its results."""
    study, report = shared.parse(__file__, __doc__ or "", argv)
    shared.split_rows(study)
    results = shared.run_all(study, study["methods"], partial(train, study), report=report)
    write(study.out / "objectives.csv", results)


def train(study: Study, method: str, seed: int) -> Metrics:
    """Train a method with a seed and return its metrics on the held-out rows."""
    module = build(study, method)
    shared.fit(study, module, seed=seed, callbacks=[references(study, module)])
    return shared.measure(study, module, "val", [references(study, module)])


def build(study: Study, method: str) -> PreferenceModule:
    """Return the module of a file of configs/methods, with the study's settings for it."""
    described = yaml.safe_load((METHODS / f"{method}.yaml").read_text(encoding="utf-8"))["model"]
    package, _, name = described["class_path"].rpartition(".")
    objective: dict[str, Any] = described["init_args"]["objective"]
    settings = {**objective.get("init_args", {}), **study["settings"].get(method, {})}
    module: PreferenceModule = getattr(importlib.import_module(package), name)(
        PolicySpec(name=study["model"], lora=study["lora"]),
        shared.build_objective({**objective, "init_args": settings}),
        optimizer=partial(torch.optim.AdamW, lr=study["learning_rate"], weight_decay=0.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
    return module


def references(study: Study, module: PreferenceModule) -> ReferenceEnsemble:
    """Return the model without its adapter, scored once for all runs unless tokens are asked for."""
    if module.needs.tokens is not None:
        return ReferenceEnsemble([AdapterOff()])
    return shared.precomputed(study, [AdapterOff()])


def write(path: Path, results: Results) -> None:
    """Write one line per run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["method", "seed", *MEASURED])
        for method, runs in sorted(results.items()):
            table.writerows(
                [method, run["seed"], *(f"{run[name]:.6g}" if name in run else "" for name in MEASURED)]
                for run in runs
            )


if __name__ == "__main__":
    main()

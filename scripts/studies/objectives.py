"""The study of all objectives: what does each do to held-out rows, with the same rows and steps?

    python scripts/studies/objectives.py [--config scripts/studies/objectives.yaml]
        [--out runs/studies/objectives] [--only METHOD ...] [--report]

1. The rows are split by prompt: some to train on, some held out. Each also names another prompt of its split,
   for the objectives that compare two prompts.
2. Each method of the study's list, a file of configs/methods, trains a fresh adapter with every seed, on the
   same prompts, steps and learning rate. The reference is the model without its adapter; where a file lists a
   second one, that is an adapter trained by SFT on the same rows. Reward models train a head, too.
3. Each is tested on the held-out prompts.
4. The measurements are written to ``objectives.csv``, one line per run. Copy it to docs/studies/ and run
   ``python -m scripts.site.catalogue``, which writes the table of docs/methods/catalogue.md.

A run whose ``metrics.json`` exists is skipped, so an interrupted study resumes; seeds are the outer loop.
``--only`` divides the study among processes: when all have finished, ``--report``, which trains nothing,
writes the results of the runs that exist. Delete the folder after a change of the YAML.
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
from study import Metrics, Results, Row, Study

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.heads import Head
from pl_prefopt.modules import PreferenceModule, Schedule
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, FrozenModel, Reference

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
    shared.split_rows(study, more=with_other_prompts)
    results = shared.run_all(study, study["methods"], partial(train, study), report=report)
    write(study.out / "objectives.csv", results)


def with_other_prompts(rows: list[Row]) -> list[Row]:
    """Return the rows, each with the next one's prompt, which its responses fit less well."""
    others = [*rows[1:], *rows[:1]]
    return [row | {"prompt_rejected": other["prompt"]} for row, other in zip(rows, others, strict=True)]


def train(study: Study, method: str, seed: int) -> Metrics:
    """Train a method with a seed and return its metrics on the held-out rows."""
    module = build(study, method)
    members = references(study, method, module.objective)
    shared.fit(study, module, seed=seed, callbacks=ensemble(study, module, members))
    return shared.measure(study, module, "val", ensemble(study, module, members))


def build(study: Study, method: str) -> PreferenceModule:
    """Return the module of a file of configs/methods, with the study's settings for it."""
    described = read(method)["model"]
    package, _, name = described["class_path"].rpartition(".")
    parts: dict[str, Any] = described["init_args"]
    objective = parts["objective"]
    settings = {**objective.get("init_args", {}), **study["settings"].get(method, {})}
    heads = {"reward_head": shared.build(Head, parts["reward_head"])} if "reward_head" in parts else {}
    module: PreferenceModule = getattr(importlib.import_module(package), name)(
        PolicySpec(name=study["model"], lora=study["lora"]),
        shared.build_objective({**objective, "init_args": settings}),
        **heads,
        optimizer=partial(torch.optim.AdamW, lr=study["learning_rate"], weight_decay=0.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
    return module


def read(method: str) -> dict[str, Any]:
    """Return the settings of a file of configs/methods."""
    settings: dict[str, Any] = yaml.safe_load((METHODS / f"{method}.yaml").read_text(encoding="utf-8"))
    return settings


def references(study: Study, method: str, objective: Objective) -> list[Reference]:
    """Return as many references as the file lists, and one for the metrics where it lists none."""
    if objective.needs.max_references == 0:
        return []
    if len(read(method)["references"]["members"]) < 2:
        return [AdapterOff()]
    tuned = PolicySpec(name=study["model"], adapter=second_reference(study))
    return [AdapterOff(), FrozenModel(tuned)]


def second_reference(study: Study) -> str:
    """Return the folder of an adapter trained by SFT, once for all runs."""
    folder = study.out / "second_reference"
    if not (folder / "adapter_config.json").is_file():
        module = build(study, "sft")
        shared.fit(study, module, seed=0)
        policy: Any = module.policy
        policy.save_pretrained(str(folder))
    return str(folder)


def ensemble(study: Study, module: PreferenceModule, members: list[Reference]) -> list[ReferenceEnsemble]:
    """Return the callback of the references, which score the rows once for all runs if they can."""
    if not members:
        return []
    if module.needs.tokens is not None:
        return [ReferenceEnsemble(members)]
    return [shared.precomputed(study, members)]


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

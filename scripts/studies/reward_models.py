"""The study of reward models: an implicit reward against trained heads, on held-out prompts.

    python scripts/studies/reward_models.py [--config scripts/studies/reward_models.yaml]
        [--out runs/studies/reward_models] [--report]

1. Lists (AlpacaEval) and pairs (HH) are split by prompt: some to train on, some held out. Responses that are
   too long are left out, so that none is truncated.
2. Each method of the study's list, a file of configs/methods, trains a fresh adapter with every seed, on the
   same prompts, steps and learning rate: DPO, whose reward is implicit, and heads for reward models. Each
   head is also trained alone, on the hidden states of the frozen model.
3. Each is tested on the held-out prompts, with bootstrap intervals over prompts.
4. For lists and pairs a table and the answers to questions are written, and one line per run to
   ``reward_models.csv``.

A run whose ``metrics.json`` exists is skipped, so an interrupted study resumes; seeds are the outer loop.
``--report`` trains nothing and writes the results of the runs that exist. Delete the folder after a change
of the YAML.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import study as shared
import torch
import yaml
from study import Metrics, Question, Results, Row, Study

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.cli.parser import Parser
from pl_prefopt.heads import Head
from pl_prefopt.modules import PreferenceModule, RewardModule, Schedule
from pl_prefopt.objectives import RewardObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff

METHODS = Path(__file__).resolve().parents[2] / "configs" / "methods"
FROZEN = "_frozen"
COLUMNS = {
    "accuracy": "accuracy",
    "best_of_n": "best of n",
    "kendall_within": "Kendall within",
    "pearson": "Pearson",
    "length_bias": "length bias",
    "seconds": "seconds",
}
"""The metrics of the tables: those of ``prefopt test``, and how long a run took."""


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the study and write its results."""
    study, report = shared.parse(__file__, __doc__ or "", argv)
    found = {}
    for name, data in study["data"].items():
        part = Study(study.settings | data, study.out / name)
        split_rows(part)
        methods = [*study["methods"][name], *(f"{one}{FROZEN}" for one in heads(study["methods"][name]))]
        found[name] = shared.run_all(part, methods, partial(train, part), report=report)
        shared.write_table(part.out, COLUMNS, found[name])
        print(f"{name}:")
        shared.write_answers(part.out, questions(found[name]))
    write(study.out / "reward_models.csv", found)


def heads(methods: list[str]) -> list[str]:
    """Return the methods that train a head."""
    return [method for method in methods if "reward_head" in described(method)["init_args"]]


def described(method: str) -> dict[str, Any]:
    """Return the module of a file of configs/methods, as a configuration has it."""
    settings: dict[str, Any] = yaml.safe_load((METHODS / f"{method}.yaml").read_text(encoding="utf-8"))
    module: dict[str, Any] = settings["model"]
    return module


# -- rows


def split_rows(study: Study) -> None:
    """Write ``train`` and ``held_out`` as JSON lines; no prompt is in both."""
    rows = list(dict(_short(study)).values())
    random.Random(study["split_seed"]).shuffle(rows)
    train, held_out = study["train_prompts"], study["held_out_prompts"]
    if len(rows) < train + held_out:
        raise SystemExit(
            f"{study['file']} has {len(rows)} rows with short responses: too few for this study."
        )
    shared.write_rows(study.rows("train"), rows[:train])
    shared.write_rows(study.rows("held_out"), rows[train : train + held_out])


def _short(study: Study) -> Iterator[tuple[str, Row]]:
    """Yield short prompts with their rows of short responses, if enough of these differ in score."""
    opener = gzip.open if study["file"].endswith(".gz") else open
    with opener(study["file"], "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            prompt, scored = _scored(row)
            kept = [
                (text, score) for text, score in scored if 0 < len(text) <= study["max_response_characters"]
            ]
            enough = len(kept) >= study["fewest_responses"] and len({score for _, score in kept}) > 1
            if enough and len(prompt) <= study["max_prompt_characters"]:
                texts, scores = zip(*kept, strict=True)
                yield (
                    prompt,
                    row if "chosen" in row else {"prompt": prompt, "responses": texts, "scores": scores},
                )


def _scored(row: Row) -> tuple[str, list[tuple[str, float]]]:
    """Return a row's prompt and scored responses, none where two dialogues differ before their end."""
    if "responses" in row:
        return row["prompt"], list(zip(row["responses"], row["scores"], strict=True))
    (prompt, _, chosen), (other, _, rejected) = (
        row[name].rpartition("\n\nAssistant:") for name in ("chosen", "rejected")
    )
    return prompt, [(chosen.strip(), 1.0), (rejected.strip(), 0.0)] if prompt == other else []


# -- runs


def train(study: Study, method: str, seed: int) -> Metrics:
    """Train a method with a seed and return its metrics on the held-out rows."""
    frozen = method.endswith(FROZEN)
    if frozen:
        rate, epochs = study["frozen_learning_rate"], study["frozen_epochs"]
        study = dataclasses.replace(
            study, settings=study.settings | {"epochs": epochs, "learning_rate": rate}
        )
    module = build(study, method.removesuffix(FROZEN), frozen=frozen)
    shared.fit(study, module, seed=seed, callbacks=references(study, module))
    return shared.measure(study, module, "test", references(study, module))


def build(study: Study, method: str, *, frozen: bool) -> PreferenceModule:
    """Return the module of a file of configs/methods, with a fresh adapter or on the frozen model."""
    settings = described(method)["init_args"]
    objective = shared.build_objective(settings["objective"])
    if not isinstance(objective, RewardObjective):
        return shared.build_module(study, objective)
    states = str(study.out / "cache" / "hidden_states")
    head = build_head(settings["reward_head"])
    return RewardModule(
        PolicySpec(name=study["model"], lora=None if frozen else study["lora"]),
        objective,
        head,
        freeze_policy=frozen,
        states_dir=states,
        optimizer=partial(torch.optim.AdamW, lr=study["learning_rate"], weight_decay=0.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )


def build_head(settings: Mapping[str, Any]) -> Head:
    """Build a reward head from ``class_path`` and ``init_args``."""
    parser = Parser(exit_on_error=False)
    parser.add_subclass_arguments(Head, "head")
    head: Head = parser.instantiate(parser.parse_object({"head": dict(settings)})).head
    return head


def references(study: Study, module: PreferenceModule) -> list[ReferenceEnsemble]:
    """Return DPO's reference, the model without its adapter, scored once for all runs."""
    return [] if isinstance(module, RewardModule) else [shared.precomputed(study, [AdapterOff()])]


# -- results


def questions(results: Results) -> list[Question]:
    """Return each question with one number per seed, positive where the answer is yes."""

    def lead(title: str, first: str, second: str) -> Question:
        return (f"{title} (difference of accuracies)", shared.compare(results, "accuracy", first, second))

    names: dict[str, str] = {
        "reward_plackett_luce": "Plackett-Luce",
        "micro": "the mixture",
    }
    return [
        lead("Bradley-Terry is better than DPO's implicit reward", "bradley_terry", "dpo"),
        *(lead(f"{name} is better than Bradley-Terry", one, "bradley_terry") for one, name in names.items()),
        lead("an adapter is better than a head alone", "bradley_terry", f"bradley_terry{FROZEN}"),
    ]


def write(path: Path, found: Mapping[str, Results]) -> None:
    """Write one line per run, with the ends of its intervals."""
    intervals = [f"{name}{end}" for name in ("accuracy", "pearson") for end in ("", "_low", "_high")]
    measured = [*intervals, "best_of_n", "kendall_within", "length_bias", "seconds"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["data", "method", "seed", *measured])
        for data, results in found.items():
            for method, runs in results.items():
                table.writerows(
                    [
                        data,
                        method,
                        run["seed"],
                        *(f"{run[name]:.6g}" if name in run else "" for name in measured),
                    ]
                    for run in runs
                )


if __name__ == "__main__":
    main()

"""The MPPO study: eight variants, DPO and SimPO from one start, on equal budgets. See docs/studies/mppo.md.

    python scripts/studies/mppo.py [--config scripts/studies/mppo.yaml] [--out runs/studies/mppo] [--report]

1. The rows are split by prompt: some for the start, some to train on, some held out.
2. The start: the model is fine-tuned on the best response of each start prompt (Point-CE with every score at
   its highest is the mean negative log-likelihood) and saved whole.
3. Every method trains a fresh adapter on the start with every seed, on the same prompts, steps and learning
   rate, and is measured on the held-out prompts. The seed decides the adapter's first weights, the order and
   the draws.
4. A table (Markdown and CSV), the answers to three questions and a figure are written.

A run whose ``metrics.json`` is there is skipped, so a stopped study goes on where it stopped; seeds are the
outer loop, so that a study stopped early still holds every method. ``--report`` trains nothing and writes the
results of the runs that are there. Delete the folder after a change of the YAML.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import logging
import os
import random
import statistics
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer, seed_everything

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.modules import DPOModule, MPPOModule, PreferenceModule, ReferenceFreeModule, Schedule
from pl_prefopt.objectives import MPPOObjective, Objective, PairMNM, PointCE, ReferenceObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff

RANKS = ("likelihood_best", "likelihood_rank_2", "likelihood_rank_3", "likelihood_rank_4")
COLUMNS = {
    "accuracy": "pairwise accuracy",
    "ranking_accuracy_normalized": "accuracy by p",
    "best_of_n": "best of n",
    "ndcg": "NDCG",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "kendall_within": "Kendall within",
    "likelihood_gap": "gap best − rest",
    **{name: f"p of rank {rank}" for rank, name in enumerate(RANKS, start=1)},
}
"""The metrics of the table; all of them are those of ``prefopt validate``."""

Metrics = dict[str, float]
Results = dict[str, list[Metrics]]


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the study and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/studies/mppo"))
    parser.add_argument("--report", action="store_true", help="write results, train nothing")
    given = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    study = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    split_rows(study, given.out / "rows")
    start = prepare_start(study, given.out)
    results: Results = {method: [] for method in study["methods"]}
    for seed in study["seeds"]:
        for method in study["methods"]:
            if not given.report or run_file(given.out, method, seed).is_file():
                results[method].append(run(study, given.out, method, seed))
    write(given.out, start, {name: runs for name, runs in results.items() if runs})
    print((given.out / "table.md").read_text(encoding="utf-8"), flush=True)
    print((given.out / "answers.md").read_text(encoding="utf-8"), flush=True)


# -- rows and start


def split_rows(study: dict[str, Any], folder: Path) -> None:
    """Write ``start``, ``train`` and ``held_out`` as JSON lines; no prompt is in two of them."""
    opener = gzip.open if study["data"].endswith(".gz") else open
    with opener(study["data"], "rt", encoding="utf-8") as lines:
        rows = list({row["prompt"]: row for row in map(json.loads, lines)}.values())
    random.Random(study["split_seed"]).shuffle(rows)
    listed = [row for row in rows if len(row["responses"]) == study["responses"]]
    others = [row for row in rows if len(row["responses"]) != study["responses"]]
    train, held_out = study["train_prompts"], study["held_out_prompts"]
    if len(listed) < train + held_out or len(others) < study["start_prompts"]:
        found = f"{len(listed)} rows to compare and {len(others)} others"
        raise SystemExit(f"{study['data']} has {found}: too few for this study.")
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("prompt", "responses", "scores")
    _write_rows(folder / "train.jsonl", [{key: row[key] for key in keys} for row in listed[:train]])
    compared = [{key: row[key] for key in keys} for row in listed[train : train + held_out]]
    _write_rows(folder / "held_out.jsonl", compared)
    _write_rows(folder / "start.jsonl", [_best(row) for row in others[: study["start_prompts"]]])


def prepare_start(study: dict[str, Any], out: Path) -> Metrics:
    """Fine-tune the model briefly on best responses, save it to ``out/start``, and return its metrics."""
    finished = out / "start" / "metrics.json"
    if finished.is_file():
        return _read(finished)
    seed_everything(0, verbose=False)
    tuned = MPPOModule(
        PolicySpec(name=study["model"], lora=study["lora"]),
        PointCE(score_range=(0.0, 1.0)),
        partial(torch.optim.AdamW, lr=study["start_learning_rate"], weight_decay=0.0),
    )
    rows = str(out / "rows" / "start.jsonl")
    _trainer(study, out).fit(tuned, _data(study, out, train=rows))
    policy: Any = tuned.policy
    policy.merge_and_unload().save_pretrained(out / "start")
    tuned.policy_spec.load_tokenizer().save_pretrained(out / "start")
    untouched = MPPOModule(PolicySpec(name=str(out / "start"), lora=study["lora"]), PairMNM())
    before = MPPOModule(PolicySpec(name=study["model"], lora=study["lora"]), PairMNM())
    metrics = {f"untuned/{name}": value for name, value in _measure(study, out, before).items()}
    metrics |= _measure(study, out, untouched)
    return _write_json(finished, metrics)


# -- one run


def run(study: dict[str, Any], out: Path, method: str, seed: int) -> Metrics:
    """Train a method with a seed and return its held-out metrics, or those of the run that is there."""
    finished = run_file(out, method, seed)
    if finished.is_file():
        return _read(finished)
    began = time.monotonic()
    seed_everything(seed, verbose=False)
    module = build_module(study, out, build_objective(study["methods"][method]))
    data = _data(study, out, train=str(out / "rows" / "train.jsonl"), seed=seed)
    _trainer(study, out, module).fit(module, data)
    metrics = _measure(study, out, module) | {"seconds": time.monotonic() - began}
    print(f"{method}, seed {seed}: {metrics['seconds']:.0f} s", flush=True)
    return _write_json(finished, metrics)


def run_file(out: Path, method: str, seed: int) -> Path:
    """Return where a run's metrics are once it has finished."""
    return out / "runs" / f"{method}-{seed}" / "metrics.json"


def build_objective(described: dict[str, Any]) -> Objective:
    """Build an objective from ``class_path`` and ``init_args``, as the command line does."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    objective: Objective = parser.instantiate(parser.parse_object({"objective": described})).objective
    return objective


def build_module(study: dict[str, Any], out: Path, objective: Objective) -> PreferenceModule:
    """Return the objective's module on a fresh adapter of the start."""
    if isinstance(objective, MPPOObjective):
        family: Any = MPPOModule
    else:
        family = DPOModule if isinstance(objective, ReferenceObjective) else ReferenceFreeModule
    module: PreferenceModule = family(
        PolicySpec(name=str(out / "start"), lora=study["lora"]),
        objective,
        partial(torch.optim.AdamW, lr=study["learning_rate"], weight_decay=0.0),
        Schedule(name="cosine", warmup=0.1),
    )
    return module


def _trainer(study: dict[str, Any], out: Path, module: PreferenceModule | None = None) -> Trainer:
    compares = module is not None and isinstance(module.objective, ReferenceObjective)
    return Trainer(
        accelerator="cpu",
        default_root_dir=out,
        max_epochs=study["epochs"],
        gradient_clip_val=1.0,
        callbacks=[ReferenceEnsemble([AdapterOff()])] if compares else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _data(study: dict[str, Any], out: Path, *, seed: int = 0, **sources: str) -> PreferenceDataModule:
    keys = ("batch_size", "eval_batch_size", "max_prompt_length", "max_response_length")
    settings = {key: study[key] for key in keys}
    return PreferenceDataModule(**sources, **settings, seed=seed, cache_dir=str(out / "cache"))


def _measure(study: dict[str, Any], out: Path, module: PreferenceModule) -> Metrics:
    data = _data(study, out, val=str(out / "rows" / "held_out.jsonl"))
    (metrics,) = _trainer(study, out, module).validate(module, data, verbose=False)
    return {name.removeprefix("val/"): value for name, value in metrics.items()}


# -- results


def write(out: Path, start: Metrics, results: Results) -> None:
    """Write ``table.csv``, ``table.md``, ``answers.md`` and ``figure.svg``."""
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["method", "runs", *(f"{name} {part}" for name in COLUMNS for part in ("mean", "sd"))])
        table.writerow(["start", 1, *(part for name in COLUMNS for part in (start.get(name, ""), ""))])
        for method, runs in results.items():
            cells = [part for name in COLUMNS for part in _mean_and_sd(_column(runs, name))]
            table.writerow([method, len(runs), *cells])
    (out / "table.md").write_text(markdown_table(start, results), encoding="utf-8")
    (out / "answers.md").write_text(answers(start, results), encoding="utf-8")
    draw(out / "figure.svg", start, results)


def markdown_table(start: Metrics, results: Results) -> str:
    """Return the table: held-out metrics, mean ± standard deviation over the seeds."""
    lines = [f"| method | runs | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    first = " | ".join(f"{start[name]:.3f}" if name in start else "–" for name in COLUMNS)
    lines.append(f"| start | 1 | {first} |")
    for method, runs in results.items():
        cells = " | ".join(_shown(_column(runs, name)) for name in COLUMNS)
        lines.append(f"| {method} | {len(runs)} | {cells} |")
    return "\n".join(lines) + "\n"


def answers(start: Metrics, results: Results) -> str:
    """Return each question's difference over the seeds; a verdict needs all seeds to agree in sign."""
    lines = ["| question | seeds | measured | answer |", "|---|---|---|---|"]
    for question, values in questions(start, results):
        signs = {(value > 0) - (value < 0) for value in values}
        verdict = {frozenset({1}): "yes", frozenset({-1}): "no"}.get(frozenset(signs), "the seeds disagree")
        lines.append(f"| {question} | {len(values)} | {_shown(values, signed=True)} | {verdict} |")
    return "\n".join(lines) + "\n"


def questions(start: Metrics, results: Results) -> list[tuple[str, list[float]]]:
    """Return each question with one number a seed, positive where the answer is yes."""

    def change(method: str, name: str) -> list[float]:
        return [run[name] - start[name] for run in results.get(method, [])]

    def lead(name: str, first: str, second: str) -> list[float]:
        pairs = zip(results.get(first, []), results.get(second, []), strict=False)
        return [one[name] - other[name] for one, other in pairs]

    best, runner_up, gap = *RANKS[:2], "likelihood_gap"
    lifts = zip(*(change("Point-CE", name) for name in RANKS), strict=True)
    gains = zip(change("Pair-MCM", runner_up), change("Pair-MCM", best), strict=True)
    asked = [
        ("Point-CE raises p of all ranks (least change)", [min(changes) for changes in lifts]),
        ("Point-CE shrinks the gap (start − end)", [-value for value in change("Point-CE", gap)]),
        ("MNM's gap beats MNS's (MNM − MNS)", lead(gap, "Pair-MNM", "Pair-MNS")),
        ("MNM's p of the best beats MNS's (MNM − MNS)", lead(best, "Pair-MNM", "Pair-MNS")),
        ("MCM raises p of the runner-up (end − start)", change("Pair-MCM", runner_up)),
        ("MCM's runner-up is above MNM's (MCM − MNM)", lead(runner_up, "Pair-MCM", "Pair-MNM")),
        ("MCM's runner-up gains on its best (change of p)", [second - first for second, first in gains]),
    ]
    return [(question, values) for question, values in asked if values]


def draw(path: Path, start: Metrics, results: Results) -> None:
    """Draw p by rank, a panel a method: the start in grey, the end with its spread over the seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "mppo"}  # small, and the same each time
    from matplotlib import pyplot

    columns = min(5, len(results))
    rows, size = -(-len(results) // columns), 2.4
    shape = {
        "figsize": (size * columns, size * rows),
        "sharey": True,
        "squeeze": False,
        "layout": "constrained",
    }
    figure, axes = pyplot.subplots(rows, columns, **shape)
    ranks = range(1, len(RANKS) + 1)
    for axis, (method, runs) in zip(axes.flat, results.items(), strict=False):
        spread = [_mean_and_sd(_column(runs, name)) for name in RANKS]
        axis.plot(ranks, [start[name] for name in RANKS], color="0.6", marker="o", label="start")
        means, deviations = [mean for mean, _ in spread], [deviation or 0.0 for _, deviation in spread]
        axis.errorbar(ranks, means, deviations, color="C0", marker="o", capsize=3, label="end")
        axis.set_title(method)
        axis.set_xticks(list(ranks))
    for axis in list(axes.flat)[len(results) :]:
        axis.set_axis_off()
    axes[0, 0].legend()
    figure.supxlabel("rank by score")
    figure.supylabel("mean likelihood p, held out")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _column(runs: list[Metrics], name: str) -> list[float]:
    return [run[name] for run in runs if name in run]


def _mean_and_sd(values: list[float]) -> tuple[float | None, float | None]:
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def _shown(values: list[float], *, signed: bool = False) -> str:
    mean, deviation = _mean_and_sd(values)
    if mean is None:
        return "–"
    number = f"{mean:+.4f}" if signed else f"{mean:.3f}"
    return number if deviation is None else f"{number} ± {deviation:.{4 if signed else 3}f}"


def _best(row: dict[str, Any]) -> dict[str, Any]:
    best = row["responses"][row["scores"].index(max(row["scores"]))]
    return {"prompt": row["prompt"], "completion": best, "label": True}


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(path: Path) -> Metrics:
    metrics: Metrics = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def _write_json(path: Path, metrics: Metrics) -> Metrics:
    """Write in one step, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
    return metrics


if __name__ == "__main__":
    main()

"""What the studies share: rows, modules, runs that go on where they stopped, tables and verdicts.

A study is a YAML file and a folder. Its scripts stand beside this file and import it by its bare name, as
Python does for the folder of the script that it runs.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.cli.parser import Parser
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.modules import (
    DPOModule,
    MPPOModule,
    MRPOModule,
    PreferenceModule,
    ReferenceFreeModule,
    Schedule,
    SrModule,
)
from pl_prefopt.objectives import (
    MPPOObjective,
    MultiReferenceObjective,
    Objective,
    ReferenceObjective,
    SelfRefinedObjective,
)
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import Reference

Metrics = dict[str, float]
Results = dict[str, list[Metrics]]
Row = dict[str, Any]
Question = tuple[str, list[float]]

_FAMILIES = {
    MPPOObjective: MPPOModule,
    MultiReferenceObjective: MRPOModule,
    SelfRefinedObjective: SrModule,
    ReferenceObjective: DPOModule,
}


@dataclass(frozen=True)
class Study:
    """The settings of a study and the folder that everything of it goes to."""

    settings: dict[str, Any]
    out: Path

    def __getitem__(self, key: str) -> Any:
        """Return a setting."""
        return self.settings[key]

    def rows(self, split: str) -> str:
        """Return the file of a split's rows."""
        return str(self.out / "rows" / f"{split}.jsonl")


def parse(script: str, about: str, argv: Sequence[str] | None) -> tuple[Study, bool]:
    """Read the command line of ``script``; the second value is ``--report``: train nothing."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(script).with_suffix(".yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/studies") / Path(script).stem)
    parser.add_argument("--report", action="store_true", help="write results, train nothing")
    parser.add_argument(
        "--only", nargs="+", metavar="METHOD", help="train these, read the runs of the others"
    )
    given = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    return Study(settings | {"only": given.only}, given.out), given.report


# -- rows


def as_it_is(row: Row) -> Row:
    """Return what a compared row has: a prompt, responses and scores."""
    return {key: row[key] for key in ("prompt", "responses", "scores")}


def split_rows(
    study: Study,
    aside: str = "",
    shape: Callable[[Row], Row] = as_it_is,
    more: Callable[[list[Row]], list[Row]] = list,
) -> None:
    """Write ``train``, ``held_out`` and, if named, ``aside`` as JSON lines; no prompt is in two of them.

    Compared are prompts with exactly ``responses`` responses; ``aside`` is drawn from the others. ``more``
    may add columns to the rows of a split.
    """
    rows = _read_rows(study)
    listed = [row for row in rows if len(row["responses"]) == study["responses"]]
    others = [row for row in rows if len(row["responses"]) != study["responses"]]
    train, held_out = study["train_prompts"], study["held_out_prompts"]
    apart = study[f"{aside}_prompts"] if aside else 0
    if len(listed) < train + held_out or len(others) < apart:
        found = f"{len(listed)} rows to compare and {len(others)} others"
        raise SystemExit(f"{study['data']} has {found}: too few for this study.")
    compared = list(map(as_it_is, listed))
    write_rows(study.rows("train"), more(compared[:train]))
    write_rows(study.rows("held_out"), more(compared[train : train + held_out]))
    if aside:
        write_rows(study.rows(aside), map(shape, others[:apart]))


def _read_rows(study: Study) -> list[Row]:
    """Return the rows, one a prompt, in a fixed random order, without prompts that are too long."""
    opener = gzip.open if study["data"].endswith(".gz") else open
    with opener(study["data"], "rt", encoding="utf-8") as lines:
        rows = list({row["prompt"]: row for row in map(json.loads, lines)}.values())
    random.Random(study["split_seed"]).shuffle(rows)
    longest = study.settings.get("max_prompt_characters")
    return [row for row in rows if longest is None or len(row["prompt"]) <= longest]


def write_rows(path: str, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, unless the file has them already: another process may be reading it."""
    file, text = Path(path), "".join(json.dumps(row) + "\n" for row in rows)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


# -- what a run is made of


def build(kind: type[Any], described: Mapping[str, Any]) -> Any:
    """Build an object of a kind from ``class_path`` and ``init_args``, as the command line does."""
    parser = Parser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "part")
    return parser.instantiate(parser.parse_object({"part": described})).part


def build_objective(described: Mapping[str, Any]) -> Objective:
    """Build an objective from ``class_path`` and ``init_args``."""
    objective: Objective = build(Objective, described)
    return objective


def build_module(study: Study, objective: Objective, model: str | None = None) -> PreferenceModule:
    """Return the objective's module on a fresh adapter of ``model``, the study's own by default."""
    families = [family for kind, family in _FAMILIES.items() if isinstance(objective, kind)]
    family: Any = families[0] if families else ReferenceFreeModule
    module: PreferenceModule = family(
        PolicySpec(name=model or study["model"], lora=study["lora"]),
        objective,
        optimizer=partial(torch.optim.AdamW, lr=study["learning_rate"], weight_decay=0.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
    return module


def trainer(study: Study, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Return a silent trainer on the CPU that saves nothing."""
    return Trainer(
        accelerator="cpu",
        default_root_dir=study.out,
        max_epochs=study["epochs"],
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def data(study: Study, *, seed: int = 0, **sources: str) -> PreferenceDataModule:
    """Return the data module of ``train=``, ``val=`` or ``test=`` a file of rows."""
    keys = ("batch_size", "eval_batch_size", "max_prompt_length", "max_response_length")
    settings = {key: study[key] for key in keys}
    return PreferenceDataModule(**sources, **settings, seed=seed, cache_dir=str(study.out / "cache"))


def precomputed(study: Study, members: Sequence[Reference]) -> ReferenceEnsemble:
    """Return references that score the rows once for all runs of the study."""
    cache = str(study.out / "cache" / "references")
    return ReferenceEnsemble(members, precompute=True, cache_dir=cache, batch_size=study["eval_batch_size"])


def fit(
    study: Study,
    module: PreferenceModule,
    *,
    seed: int,
    split: str = "train",
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train a module on a split. The seed decides its first weights, the order and the draws."""
    seed_everything(seed, verbose=False)
    trainer(study, callbacks).fit(module, data(study, train=study.rows(split), seed=seed))


def measure(
    study: Study,
    module: PreferenceModule,
    stage: Literal["val", "test"],
    callbacks: Sequence[Callback] = (),
) -> Metrics:
    """Return the metrics on the held-out rows; those of ``test`` come with bootstrap intervals."""
    held_out = data(study, **{stage: study.rows("held_out")})
    runner = trainer(study, callbacks)
    evaluate = runner.validate if stage == "val" else runner.test
    (metrics,) = evaluate(module, held_out, verbose=False)
    return {name.removeprefix(f"{stage}/"): value for name, value in metrics.items()}


# -- runs


def run_all(
    study: Study, methods: Iterable[str], run: Callable[[str, int], Metrics], *, report: bool
) -> Results:
    """Run every method with every seed and return what there is of each method.

    Seeds are the outer loop, so that a study stopped early still holds every method. With ``report`` nothing
    is run, with ``--only`` the methods that it names. A run that has finished is read; each result names its
    ``seed``.
    """
    results: Results = {method: [] for method in methods}
    only = results.keys() if study.settings.get("only") is None else set(study["only"])
    if unknown := only - results.keys():
        raise SystemExit(f"--only names {', '.join(unknown)}, but the methods are {', '.join(results)}.")
    for seed in study["seeds"]:
        for method, runs in results.items():
            finished = run_file(study, method, seed)
            if not finished.is_file() and (report or method not in only):
                continue
            if not finished.is_file():
                _run_one(finished, method, seed, run)
            runs.append(read(finished) | {"seed": seed})
    return {method: runs for method, runs in results.items() if runs}


def _run_one(finished: Path, method: str, seed: int, run: Callable[[str, int], Metrics]) -> None:
    began, used = time.monotonic(), time.process_time()
    metrics = run(method, seed)
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    print(f"{method}, seed {seed}: {seconds:.0f} s, {cpu:.0f} s of CPU time", flush=True)
    write_json(finished, metrics | {"seconds": seconds, "cpu_seconds": cpu})


def run_file(study: Study, method: str, seed: int) -> Path:
    """Return where a run's metrics are once it has finished."""
    return study.out / "runs" / f"{method}-{seed}" / "metrics.json"


def read(path: Path) -> Metrics:
    """Read what ``write_json`` wrote."""
    metrics: Metrics = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def write_json(path: Path, metrics: Metrics) -> Metrics:
    """Write in one step, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
    return metrics


# -- results


def column(runs: Iterable[Metrics], name: str) -> list[float]:
    """Return a metric of the runs that have it."""
    return [run[name] for run in runs if name in run]


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the standard deviation; ``None`` where there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def shown(values: Sequence[float], *, signed: bool = False) -> str:
    """Return mean ± standard deviation as text."""
    mean, deviation = mean_and_sd(values)
    if mean is None:
        return "–"
    number = f"{mean:+.4f}" if signed else f"{mean:.3f}"
    return number if deviation is None else f"{number} ± {deviation:.{4 if signed else 3}f}"


def write_table(
    out: Path, columns: Mapping[str, str], results: Results, first: Results | None = None
) -> None:
    """Write ``table.csv`` and ``table.md``: a row a method, after the rows of ``first``.

    Args:
        out: the study's folder.
        columns: metrics and what the Markdown calls them; the CSV has them by their own names, and the ends
            of the intervals too where there are any.
        results: the runs of each method.
        first: rows that are no method's, such as the start's.
    """
    rows = {**(first or {}), **results}
    found = {name for runs in rows.values() for run in runs for name in run}
    ends = [f"{name}_{end}" for name in columns for end in ("low", "high")]
    names = [*columns, *(name for name in ends if name in found)]
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["method", "runs", *(f"{name} {part}" for name in names for part in ("mean", "sd"))])
        for method, runs in rows.items():
            cells = [part for name in names for part in mean_and_sd(column(runs, name))]
            table.writerow([method, len(runs), *cells])
    (out / "table.md").write_text(_markdown(columns, rows), encoding="utf-8")


def _markdown(columns: Mapping[str, str], rows: Results) -> str:
    lines = [f"| method | runs | {' | '.join(columns.values())} |", "|---" * (len(columns) + 2) + "|"]
    for method, runs in rows.items():
        cells = " | ".join(_cell(runs, name) for name in columns)
        lines.append(f"| {method} | {len(runs)} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[Metrics], name: str) -> str:
    """Return mean ± deviation over the runs, then the mean ends of the runs' intervals if they have them."""
    low, high = (mean_and_sd(column(runs, f"{name}_{end}"))[0] for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return shown(column(runs, name)) + interval


def verdicts(questions: Iterable[Question]) -> str:
    """Return a table of questions, each with one number a seed that is positive where the answer is yes.

    A verdict needs all seeds to agree in sign; a question without numbers is left out.
    """
    lines = ["| question | seeds | measured | answer |", "|---|---|---|---|"]
    for question, values in questions:
        if values:
            signs = frozenset((value > 0) - (value < 0) for value in values)
            answers = {frozenset({1}): "yes", frozenset({-1}): "no", frozenset({0}): "neither"}
            verdict = answers.get(signs, "the seeds disagree")
            lines.append(f"| {question} | {len(values)} | {shown(values, signed=True)} | {verdict} |")
    return "\n".join(lines) + "\n"


def paired(results: Results, *methods: str) -> list[tuple[Metrics, ...]]:
    """Return the runs of the methods side by side, for each seed that all of them have."""
    runs = [{run["seed"]: run for run in results.get(method, [])} for method in methods]
    seeds = sorted(set.intersection(*map(set, runs))) if runs else []
    return [tuple(found[seed] for found in runs) for seed in seeds]


def compare(results: Results, metric: str, first: str, second: str) -> list[float]:
    """Return by how much ``first`` exceeds ``second``, one number a seed that both have."""
    return [
        one[metric] - other[metric]
        for one, other in paired(results, first, second)
        if metric in one and metric in other
    ]


@contextmanager
def drawn(path: Path, rows: int, columns: int, *, size: float, sharey: bool = False) -> Iterator[Any]:
    """Give a figure of ``rows`` × ``columns`` square panels; save it as SVG, small and the same each time."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": path.parent.name}
    from matplotlib import pyplot

    shape: Any = {"figsize": (size * columns, size * rows), "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(rows, columns, sharey=sharey, **shape)
    yield figure, axes
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def error_bars(axis: Any, places: Sequence[float], samples: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw mean and standard deviation of each sample that has values."""
    spread = [(place, *mean_and_sd(values)) for place, values in zip(places, samples, strict=True) if values]
    means = [mean for _, mean, _ in spread]
    deviations = [deviation or 0.0 for _, _, deviation in spread]
    axis.errorbar([place for place, _, _ in spread], means, deviations, marker="o", capsize=3, **style)


def write_answers(out: Path, questions: Iterable[Question]) -> None:
    """Write ``answers.md``, then print it after the table."""
    (out / "answers.md").write_text(verdicts(questions), encoding="utf-8")
    print((out / "table.md").read_text(encoding="utf-8"), flush=True)
    print((out / "answers.md").read_text(encoding="utf-8"), flush=True)

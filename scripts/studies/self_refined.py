"""The study of Sr-DPO and Sr-IPO: what does the strength λ do to margins and their order?

    python scripts/studies/self_refined.py [--config scripts/studies/self_refined.yaml]
        [--out runs/studies/self_refined] [--report]

1. The rows are split by prompt: some to train on, some held out.
2. DPO, IPO, Sr-DPO and Sr-IPO at every λ train a fresh adapter with every seed, on the same prompts, steps
   and learning rate. The reference is the model without its adapter; both views are scored once for all runs.
   A seed's runs have the same first weights and the same order, so their differences are paired.
3. Each is tested on the held-out prompts, with bootstrap intervals over prompts.
4. A table (Markdown and CSV), the answers to the paper's questions and a figure are written.

A run whose ``metrics.json`` is there is skipped, so a stopped study goes on where it stopped; seeds are the
outer loop. ``--report`` trains nothing and writes the results of the runs that are there. Delete the folder
after a change of the YAML.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study as shared
from study import Metrics, Question, Results, Study

from pl_prefopt.references import AdapterOff

CORRELATIONS = ("pearson", "spearman", "kendall")
COLUMNS = {
    "accuracy": "accuracy",
    "log_ratio_margin_0": "marginal",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "accuracy_quality": "accuracy, quality",
    "margin_quality": "Δ",
    "loss": "loss",
}
"""The metrics of the table; all of them are those of ``prefopt test``."""


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the study and write its results."""
    study, report = shared.parse(__file__, __doc__ or "", argv)
    shared.split_rows(study)
    methods = expand(study)

    def run(method: str, seed: int) -> Metrics:
        return train(study, methods[method], seed)

    results = shared.run_all(study, methods, run, report=report)
    shared.write_table(study.out, COLUMNS, results)
    draw(study.out / "figure.svg", study, results)
    shared.write_answers(study.out, questions(study, results))


def expand(study: Study) -> dict[str, dict[str, Any]]:
    """Return every family at every strength, by name."""
    return {
        name(family, strength): {**method, "init_args": {**method["init_args"], "strength": strength}}
        for family, method in study["families"].items()
        for strength in study["strengths"]
    }


def name(family: str, strength: float) -> str:
    """Return what a method is called: at λ = 0 it is the family's namesake."""
    return f"Sr-{family}-{strength:g}" if strength else family


def train(study: Study, method: dict[str, Any], seed: int) -> Metrics:
    """Train a method with a seed and return its metrics on the held-out rows."""
    module = shared.build_module(study, shared.build_objective(method))
    shared.fit(study, module, seed=seed, callbacks=[shared.precomputed(study, [AdapterOff()])])
    return shared.measure(study, module, "test", [shared.precomputed(study, [AdapterOff()])])


def questions(study: Study, results: Results) -> list[Question]:
    """Return each question with one number a seed, positive where the answer is yes."""
    asked: list[Question] = []
    for family in study["families"]:
        for metric in (*CORRELATIONS, "accuracy"):
            title = f"{family}: {metric.capitalize()} rises with λ (slope)"
            asked.append((title, slopes(study, results, family, metric)))
        fallen = [-slope for slope in slopes(study, results, family, "log_ratio_margin_0")]
        asked.append((f"{family}: the marginal falls with λ (−slope)", fallen))
        where = f"{family}: where accuracy is about λ = 0's,"
        lower = [-change for change in at_equal_accuracy(study, results, family, "log_ratio_margin_0")]
        asked.append((f"{where} the marginal is lower (λ = 0 − mean)", lower))
        higher = at_equal_accuracy(study, results, family, "kendall")
        asked.append((f"{where} Kendall is higher (mean − λ = 0)", higher))
    return asked


def slopes(study: Study, results: Results, family: str, metric: str) -> list[float]:
    """Return the least-squares slope of a metric against λ, of each seed that has all strengths."""
    strengths = study["strengths"]
    runs = shared.paired(results, *(name(family, strength) for strength in strengths))
    return [
        statistics.linear_regression(strengths, [run[metric] for run in seed]).slope
        for seed in runs
        if all(metric in run for run in seed)
    ]


def at_equal_accuracy(study: Study, results: Results, family: str, metric: str) -> list[float]:
    """Return a metric's change from λ = 0, a mean over the strengths whose accuracy is about the same.

    One number a seed; a seed at which no strength keeps the accuracy has none.
    """
    strengths = [strength for strength in study["strengths"] if strength]
    runs = shared.paired(results, family, *(name(family, strength) for strength in strengths))
    changes = [
        [
            run[metric] - plain[metric]
            for run in refined
            if metric in run and abs(run["accuracy"] - plain["accuracy"]) <= study["equal_accuracy"]
        ]
        for plain, *refined in runs
        if metric in plain
    ]
    return [statistics.fmean(seed) for seed in changes if seed]


def draw(path: Path, study: Study, results: Results) -> None:
    """Draw correlations, marginal and accuracy against λ, a line a family, with the spread over the seeds."""
    panels = {
        "pearson": "Pearson",
        "kendall": "Kendall",
        "log_ratio_margin_0": "marginal",
        "accuracy": "accuracy",
    }
    strengths: Sequence[float] = study["strengths"]
    with shared.drawn(path, 2, 2, size=3.0) as (figure, axes):
        for axis, (metric, title) in zip(axes.flat, panels.items(), strict=True):
            for family in study["families"]:
                runs = [results.get(name(family, strength), []) for strength in strengths]
                samples = [shared.column(found, metric) for found in runs]
                shared.error_bars(axis, strengths, samples, label=f"{family}, Sr-{family}")
            axis.set_title(title)
        axes[0, 0].legend()
        figure.supxlabel("strength λ")


if __name__ == "__main__":
    main()

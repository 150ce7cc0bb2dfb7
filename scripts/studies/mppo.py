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

from functools import partial
from pathlib import Path
from typing import Any

import study as shared
import torch
from lightning.pytorch import Callback
from study import Metrics, Question, Results, Row, Study

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.modules import MPPOModule, PreferenceModule
from pl_prefopt.objectives import PairMNM, PointCE, ReferenceObjective
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


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the study and write its results."""
    study, report = shared.parse(__file__, __doc__ or "", argv)
    shared.split_rows(study, "start", _best)
    start = prepare_start(study)

    def run(method: str, seed: int) -> Metrics:
        return train(study, study["methods"][method], seed)

    results = shared.run_all(study, study["methods"], run, report=report)
    shared.write_table(study.out, COLUMNS, results, {"start": [start]})
    draw(study.out / "figure.svg", start, results)
    shared.write_answers(study.out, questions(start, results))


def prepare_start(study: Study) -> Metrics:
    """Fine-tune the model briefly on best responses, save it to ``out/start``, and return its metrics."""
    folder = study.out / "start"
    finished = folder / "metrics.json"
    if finished.is_file():
        return shared.read(finished)
    tuned = MPPOModule(
        PolicySpec(name=study["model"], lora=study["lora"]),
        PointCE(score_range=(0.0, 1.0)),
        optimizer=partial(torch.optim.AdamW, lr=study["start_learning_rate"], weight_decay=0.0),
    )
    shared.fit(study, tuned, seed=0, split="start")
    policy: Any = tuned.policy
    policy.merge_and_unload().save_pretrained(folder)
    tuned.policy_spec.load_tokenizer().save_pretrained(folder)
    before = shared.measure(study, shared.build_module(study, PairMNM()), "val")
    untouched = shared.build_module(study, PairMNM(), str(folder))
    metrics = {f"untuned/{name}": value for name, value in before.items()}
    return shared.write_json(finished, metrics | shared.measure(study, untouched, "val"))


def train(study: Study, method: dict[str, Any], seed: int) -> Metrics:
    """Train a method on the start with a seed and return its held-out metrics."""
    module = shared.build_module(study, shared.build_objective(method), str(study.out / "start"))
    shared.fit(study, module, seed=seed, callbacks=_references(module))
    return shared.measure(study, module, "val", _references(module))


def _references(module: PreferenceModule) -> list[Callback]:
    compares = isinstance(module.objective, ReferenceObjective)
    return [ReferenceEnsemble([AdapterOff()])] if compares else []


def _best(row: Row) -> Row:
    best = row["responses"][row["scores"].index(max(row["scores"]))]
    return {"prompt": row["prompt"], "completion": best, "label": True}


# -- results


def answers(start: Metrics, results: Results) -> str:
    """Return each question's difference over the seeds; a verdict needs all seeds to agree in sign."""
    return shared.verdicts(questions(start, results))


def questions(start: Metrics, results: Results) -> list[Question]:
    """Return each question with one number a seed, positive where the answer is yes."""

    def change(method: str, name: str) -> list[float]:
        return [run[name] - start[name] for run in results.get(method, [])]

    def lead(name: str, first: str, second: str) -> list[float]:
        return shared.compare(results, name, first, second)

    best, runner_up, gap = *RANKS[:2], "likelihood_gap"
    lifts = zip(*(change("Point-CE", name) for name in RANKS), strict=True)
    gains = zip(change("Pair-MCM", runner_up), change("Pair-MCM", best), strict=True)
    return [
        ("Point-CE raises p of all ranks (least change)", [min(changes) for changes in lifts]),
        ("Point-CE shrinks the gap (start − end)", [-value for value in change("Point-CE", gap)]),
        ("MNM's gap beats MNS's (MNM − MNS)", lead(gap, "Pair-MNM", "Pair-MNS")),
        ("MNM's p of the best beats MNS's (MNM − MNS)", lead(best, "Pair-MNM", "Pair-MNS")),
        ("MCM raises p of the runner-up (end − start)", change("Pair-MCM", runner_up)),
        ("MCM's runner-up is above MNM's (MCM − MNM)", lead(runner_up, "Pair-MCM", "Pair-MNM")),
        ("MCM's runner-up gains on its best (change of p)", [second - first for second, first in gains]),
    ]


def draw(path: Path, start: Metrics, results: Results) -> None:
    """Draw p by rank, a panel a method: the start in grey, the end with its spread over the seeds."""
    columns = min(5, len(results))
    ranks = range(1, len(RANKS) + 1)
    with shared.drawn(path, -(-len(results) // columns), columns, size=2.4, sharey=True) as (figure, axes):
        for axis, (method, runs) in zip(axes.flat, results.items(), strict=False):
            axis.plot(ranks, [start[name] for name in RANKS], color="0.6", marker="o", label="start")
            samples = [shared.column(runs, name) for name in RANKS]
            shared.error_bars(axis, ranks, samples, color="C0", label="end")
            axis.set_title(method)
            axis.set_xticks(list(ranks))
        for axis in list(axes.flat)[len(results) :]:
            axis.set_axis_off()
        axes[0, 0].legend()
        figure.supxlabel("rank by score")
        figure.supylabel("mean likelihood p, held out")


if __name__ == "__main__":
    main()

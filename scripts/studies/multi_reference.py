"""The study of MRPO and Multi-DPO: does a second, stronger reference help a small policy?

    python scripts/studies/multi_reference.py [--config scripts/studies/multi_reference.yaml]
        [--out runs/studies/multi_reference] [--report]

1. The rows are split by prompt: some for reference 2, some to train on, some held out.
2. Reference 1 is the model that every policy starts from. Reference 2 is that model after DPO on its own
   prompts, so it knows the data's preferences and no policy's rows. It is saved as an adapter in
   ``out/reference``. Both score all rows once for all runs.
3. DPO against reference 1, Multi-DPO and MRPO against both train a fresh adapter with every seed, on the same
   prompts, steps and learning rate; MRPO with several ε_max.
4. Every policy is judged twice on the held-out prompts: by its own reward, as in the paper, and by DPO's,
   β(log π_θ − log π_1). The two differ for MRPO alone. Its own reward compares with a reference that may
   order the pair right already, so the same policy has another accuracy by it; only DPO's compares all.
5. A table (Markdown and CSV), the answers to the questions and a figure are written.

A run whose ``metrics.json`` is there is skipped, so a stopped study goes on where it stopped; seeds are the
outer loop. ``--report`` trains nothing and writes the results of the runs that are there. Delete the folder
after a change of the YAML.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import study as shared
from lightning.pytorch import Callback, LightningModule, Trainer
from study import Metrics, Question, Results, Study

from pl_prefopt.modules import PreferenceModule
from pl_prefopt.objectives import MultiReferenceObjective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, FrozenModel, Reference

COLUMNS = {
    "accuracy": "accuracy",
    "log_ratio_margin_0": "marginal",
    "own_accuracy": "accuracy, own reward",
    "own_margin": "margin, own reward",
    "ranking_accuracy": "accuracy by log π",
    "alpha_1": "α of reference 2",
    "clip_rate": "clip rate",
    "reference_accuracy": "accuracy of π̃",
    "loss_first": "first loss",
    "loss_min": "least loss",
    "loss_max": "greatest loss",
    "loss_last": "last loss",
    "not_finite": "steps not finite",
}
"""The metrics of the table: those of ``prefopt test``, and how the training loss went."""

SAME = 0.01
"""How far apart marginals may be, by rounding, in the check that ε_max = 0 is DPO."""


class LossCourse(Callback):
    """Keeps the training loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step's loss."""
        self.losses.append(float(outputs["loss"]))

    def summary(self) -> Metrics:
        """Return the first, the last, the least and the greatest loss, and how many were no numbers."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        course = {"not_finite": float(len(self.losses) - len(finite))}
        if finite:
            ends = {"loss_first": finite[0], "loss_last": finite[-1]}
            course |= ends | {"loss_min": min(finite), "loss_max": max(finite)}
        return course


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the study and write its results."""
    study, report = shared.parse(__file__, __doc__ or "", argv)
    shared.split_rows(study, "reference")
    second = prepare_reference(study, report=report)
    methods = expand(study)

    def run(method: str, seed: int) -> Metrics:
        return train(study, methods[method], seed)

    results = shared.run_all(study, methods, run, report=report)
    shared.write_table(study.out, COLUMNS, results, {"reference 2": [second]})
    draw(study.out / "figure.svg", study, results)
    shared.write_answers(study.out, questions(study, second, results))


def expand(study: Study) -> dict[str, dict[str, Any]]:
    """Return every method by name, MRPO at each ε_max."""
    methods: dict[str, dict[str, Any]] = {}
    for method, described in study["methods"].items():
        if method != "MRPO":
            methods[method] = described
            continue
        for epsilon in study["epsilon_max"]:
            clip = {**described["init_args"]["clip"], "init_args": {"epsilon_max": epsilon}}
            init_args = {**described["init_args"], "clip": clip}
            methods[name(epsilon)] = {**described, "init_args": init_args}
    return methods


def name(epsilon: float) -> str:
    """Return what MRPO at an ε_max is called."""
    return f"MRPO-{epsilon:g}"


# -- runs


def prepare_reference(study: Study, *, report: bool) -> Metrics:
    """Train reference 2 by DPO on its own prompts, save its adapter, and return its metrics.

    ``accuracy`` is that of its log-ratio to reference 1; ``ranking_accuracy`` that of its log-probs, beside
    ``untuned_ranking_accuracy`` of reference 1.
    """
    finished = study.out / "reference" / "metrics.json"
    if finished.is_file():
        return shared.read(finished)
    if report:
        raise SystemExit(f"{study.out} has no reference 2 yet, and so nothing to report.")
    module = shared.build_module(study, judge(study))
    course = LossCourse()
    callbacks = [course, shared.precomputed(study, [AdapterOff()])]
    shared.fit(study, module, seed=0, split="reference", callbacks=callbacks)
    policy: Any = module.policy
    policy.save_pretrained(_adapter(study))
    before = judged(study, shared.build_module(study, judge(study)))
    untuned = {"untuned_ranking_accuracy": before["ranking_accuracy"]}
    return shared.write_json(finished, judged(study, module) | untuned | course.summary())


def train(study: Study, method: dict[str, Any], seed: int) -> Metrics:
    """Train a method with a seed and judge it by its own reward and by DPO's.

    A run whose loss was no number once has no weights left to judge: only its losses are returned.
    """
    module = shared.build_module(study, shared.build_objective(method))
    course = LossCourse()
    callbacks = [course, shared.precomputed(study, references(study, module))]
    shared.fit(study, module, seed=seed, callbacks=callbacks)
    stability = course.summary()
    if stability["not_finite"]:
        return stability
    own = shared.measure(study, module, "test", [shared.precomputed(study, references(study, module))])
    mixed = {key: own[key] for key in ("alpha_1", "epsilon", "clip_rate", "reference_accuracy") if key in own}
    ends = ("", "_low", "_high")
    rewards = {f"own_{key}{end}": own[f"{key}{end}"] for key in ("accuracy", "margin") for end in ends}
    return judged(study, module) | rewards | mixed | stability


def references(study: Study, module: PreferenceModule) -> list[Reference]:
    """Return the references of a module's objective: the policy's start, and reference 2 if it takes it."""
    if not isinstance(module.objective, MultiReferenceObjective):
        return [AdapterOff()]
    tuned = PolicySpec(name=study["model"], adapter=_adapter(study))
    return [AdapterOff(), FrozenModel(tuned)]


def _adapter(study: Study) -> str:
    return str(study.out / "reference" / "adapter")


def judge(study: Study) -> Any:
    """Return DPO, whose reward compares all policies."""
    return shared.build_objective(study["methods"]["DPO"])


def judged(study: Study, module: PreferenceModule) -> Metrics:
    """Return the held-out metrics of a module's policy by DPO's reward."""
    by_dpo = shared.build_module(study, judge(study))
    if "policy" in module._modules:
        by_dpo.policy = module.policy
    return shared.measure(study, by_dpo, "test", [shared.precomputed(study, [AdapterOff()])])


# -- results


def questions(study: Study, second: Metrics, results: Results) -> list[Question]:
    """Return each question with one number a seed, positive where the answer is yes."""
    published = name(study["published"])

    def lead(other: str, metric: str = "accuracy", first: str = published) -> list[float]:
        return shared.compare(results, metric, first, other)

    stronger = second["ranking_accuracy"] - second["untuned_ranking_accuracy"]
    strays = shared.compare(results, "log_ratio_margin_0", name(0), "DPO")
    own = shared.compare(results, "own_accuracy", published, "DPO")
    unclipped = lead(published, "loss_max", name(max(study["epsilon_max"])))
    return [
        ("reference 2 is stronger by log-ratio (accuracy − ½)", [second["accuracy"] - 0.5]),
        ("reference 2 is stronger by log π (accuracy − reference 1's)", [stronger]),
        ("MRPO's accuracy beats DPO's (MRPO − DPO)", lead("DPO")),
        ("MRPO's marginal beats DPO's (MRPO − DPO)", lead("DPO", "log_ratio_margin_0")),
        ("MRPO's accuracy beats DPO's, own rewards (MRPO − DPO)", own),
        ("Multi-DPO's accuracy beats DPO's (Multi-DPO − DPO)", lead("DPO", first="Multi-DPO")),
        ("MRPO's accuracy beats Multi-DPO's (MRPO − Multi-DPO)", lead("Multi-DPO")),
        ("adaptive weights beat uniform ones (accuracy)", lead("MRPO-uniform")),
        ("the harmonic mean beats the geometric one (accuracy)", lead("MRPO-geometric")),
        ("accuracy rises, then falls with ε_max (mean within − mean of the ends)", hump(study, results)),
        ("without a clip the loss gets higher (greatest, widest ε_max − published)", unclipped),
        (f"ε_max = 0 is DPO ({SAME} − difference of marginals)", [SAME - abs(gap) for gap in strays]),
    ]


def hump(study: Study, results: Results) -> list[float]:
    """Return by how much accuracy within the range of ε_max exceeds that at its ends, one number a seed.

    Means, not maxima: the best of three would win by chance.
    """
    runs = shared.paired(results, *map(name, sorted(study["epsilon_max"])))
    accuracies = [
        [run["accuracy"] for run in seed] for seed in runs if all("accuracy" in run for run in seed)
    ]
    return [
        statistics.fmean(within) - statistics.fmean([first, last])
        for first, *within, last in accuracies
        if within
    ]


def draw(path: Path, study: Study, results: Results) -> None:
    """Draw accuracy and marginal, by DPO's reward: against ε_max with DPO as a line, and a point a method."""
    panels = {"accuracy": "accuracy", "log_ratio_margin_0": "marginal"}
    epsilons = study["epsilon_max"]
    methods = [method for method in results if method not in map(name, epsilons)]
    methods.insert(min(2, len(methods)), name(study["published"]))
    with shared.drawn(path, 2, 2, size=3.4) as (_, axes):
        for (left, right), (metric, title) in zip(axes, panels.items(), strict=True):
            samples = [shared.column(results.get(name(epsilon), []), metric) for epsilon in epsilons]
            shared.error_bars(left, range(len(epsilons)), samples, label="MRPO")
            plain, _ = shared.mean_and_sd(shared.column(results.get("DPO", []), metric))
            if plain is not None:
                left.axhline(plain, color="0.6", label="DPO")
            left.set_xticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
            left.set_xlabel("ε_max")
            left.set_ylabel(title)
            samples = [shared.column(results.get(method, []), metric) for method in methods]
            shared.error_bars(right, range(len(methods)), samples, linestyle="none")
            right.set_xticks(range(len(methods)), methods, rotation=60, ha="right")
        axes[0, 1].set_xticklabels([])  # the panel below has the same methods
        axes[0, 0].legend()


if __name__ == "__main__":
    main()

"""The study of rounds: does a policy learn more from its own samples, drawn anew, than from one offline run?

    python scripts/studies/rounds.py [--config scripts/studies/rounds.yaml] [--out runs/studies/rounds]
        [--report]

1. One offline run of DPO, iterative DPO, SPPO and DNO-Prct train with every seed, each by `prefopt rounds`.
   All have the same prompts, samples per prompt and gradient steps; the offline run takes all of its samples
   from the initial policy. DNO-Prct also has the data's best response as a candidate.
2. The answers to held-out prompts are sampled with the same seeds before and after, and the demo's rule
   judges them, so a run's gain is paired by prompt.
3. A table (Markdown and CSV) and the answers to the questions are written.

A run whose ``metrics.json`` is there is skipped, and one that was stopped goes on at its stage; seeds are the
outer loop. ``--report`` trains nothing and writes the results of the runs that are there. Delete the folder
after a change of the YAML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import study as shared
import yaml
from study import Metrics, Question, Results, Study

from pl_prefopt.cli.rounds import rounds
from pl_prefopt.rounds.plan import merged_settings

COLUMNS = {
    "score": "score",
    "gain": "gain",
    "words": "words",
    "kl": "KL",
    "rows": "rows",
    "share_without_rows": "prompts without a row",
}
OFFLINE = "offline-DPO"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study."""
    study, report = shared.parse(__file__, __doc__ or "", argv)
    results = shared.run_all(
        study, study["methods"], lambda method, seed: run(study, method, seed), report=report
    )
    shared.write_table(study.out, COLUMNS, results)
    shared.write_answers(study.out, questions(results))


def run(study: Study, method: str, seed: int) -> Metrics:
    """Run the rounds of a method and return what the last round's measure says."""
    folder = shared.run_file(study, method, seed).parent
    settings = settings_of(study, method, seed) | {"out": str(folder / "rounds")}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rounds.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    rounds(["-c", str(file)])
    training = []
    for number in range(1, settings["rounds"] + 1):
        summary = folder / "rounds" / f"round-{number}" / "measure" / "summary.json"
        found = json.loads(summary.read_text(encoding="utf-8"))
        training.append(found["training"])
    return {
        "score": found["score"],
        "gain": found["gain_first"],
        "gain_low": found["gain_first"] - found["gain_first_half_width"],
        "gain_high": found["gain_first"] + found["gain_first_half_width"],
        "words": found["words"],
        "kl": found["kl"],
        "rows": sum(one["rows"] for one in training),
        "share_without_rows": sum(one["share_without_rows"] for one in training) / len(training),
    }


def settings_of(study: Study, method: str, seed: int) -> dict[str, Any]:
    """Return the settings of ``prefopt rounds``; the seed is that of sampling and training."""
    settings = merged_settings(study["rounds"], study["methods"][method])
    sampling = {"seed": 1000 * seed}  # round t adds t
    return merged_settings(settings, {"sampling": sampling, "fit": {"settings": {"seed_everything": seed}}})


def questions(results: Results) -> list[Question]:
    """Return the questions, with one number per seed each."""
    asked: list[Question] = [
        (f"the held-out score rises by {method}", shared.column(runs, "gain"))
        for method, runs in results.items()
    ]
    return asked + [
        (f"{method} scores higher than one offline run", shared.compare(results, "score", method, OFFLINE))
        for method in results
        if method != OFFLINE
    ]


if __name__ == "__main__":
    main()

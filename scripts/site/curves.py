"""Draw the pictures of docs/curves.md: normal and faulty runs of a tiny random model on made-up rows.

    python -m scripts.site.curves [--case healthy]

Every picture is a real run of `pl_prefopt.fit`, on a CPU, of a Llama with two layers. The better answer to a
question starts with one of two words, the worse one with another; a share of the labels is wrong. The shapes
are those of real runs, the numbers are not: so small a model takes a learning rate a thousand times as large.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
WORDS = ("fox", "dog", "Paris", "France", "answer", "hello", "quick", "lazy", "brown", "capital")
PANELS = {
    "loss": ("train/loss", "val/loss"),
    "accuracy": ("train/accuracy", "val/accuracy"),
    "log-prob of responses": ("val/chosen_logp", "val/rejected_logp"),
}


class Case(NamedTuple):
    """A run.

    Attributes:
        rate: its learning rate.
        noise: the share of training rows with chosen and rejected swapped.
        rows: the number of training rows.
        beta: DPO's.
        hardware: its configuration.
    """

    rate: float
    noise: float = 0.15
    rows: int = 400
    beta: float = 0.1
    hardware: str = "cpu"


CASES = {
    "healthy": Case(5e-4),
    "too_slow": Case(1e-6),
    "unstable": Case(0.3, hardware="full_cpu"),
    "overfitted": Case(1e-2, noise=0.5, rows=24, hardware="full_cpu"),
    "swapped": Case(1e-3, noise=0.9),
}


def make_rows(count: int, *, noise: float, seed: int) -> list[dict[str, str]]:
    """Return pairs of which a share is labelled the wrong way round."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        words = generator.choices(WORDS, k=4)
        better = f"{generator.choice(('Yes', 'Maybe'))}, the {words[0]} {words[1]}."
        worse = f"{generator.choice(('Sorry', 'No'))}, the {words[2]} {words[3]}."
        if generator.random() < noise:
            better, worse = worse, better
        rows.append({"prompt": f"What is the {words[3]} {number}?", "chosen": better, "rejected": worse})
    return rows


def trained(case: Case, folder: Path) -> list[dict[str, str]]:
    """Return the metrics that a run has logged, a row per step."""
    import pl_prefopt as pp
    from tests.support import save_tiny_model

    pp.fit(
        str(save_tiny_model(folder / "model")),
        make_rows(case.rows, noise=case.noise, seed=1),
        pp.DPO(beta=case.beta),
        val=make_rows(64, noise=0.15, seed=2),
        lr=case.rate,
        configs=[f"hardware/{case.hardware}"],
        run_dir=str(folder / "run"),
        settings={
            "data.batch_size": 8,
            "data.held_out": 0,
            "trainer.max_epochs": 100,
            "trainer.max_steps": 60,
            "trainer.accumulate_grad_batches": 1,
            "trainer.log_every_n_steps": 5,
            "trainer.val_check_interval": 5,
            "trainer.check_val_every_n_epoch": None,
            "trainer.enable_progress_bar": False,
            "default_callbacks": False,
        },
    )
    with (folder / "run" / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw(path: Path, logged: list[dict[str, str]]) -> None:
    """Draw one panel per quantity, training dashed, validation solid."""
    from scripts.studies.study import drawn

    with drawn(path, 1, len(PANELS), size=2.8) as (figure, axes):
        for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
            for name in names:
                points = [(int(row["step"]), float(row[name])) for row in logged if row.get(name)]
                style = "--" if name.startswith("train/") else "-"
                axis.plot(*zip(*points, strict=True), linestyle=style, label=name)
            axis.set_title(title)
            axis.legend(fontsize="small")
        figure.supxlabel("optimiser step")


def main() -> None:
    """Run the cases and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="A case; all by default.")
    for name in parser.parse_args().case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            logged: Any = trained(CASES[name], Path(folder))
        draw(FOLDER / f"curves_{name}.svg", logged)
        last = {key: value for row in logged for key, value in row.items() if value}
        print(name, {key: last[key] for names in PANELS.values() for key in names if key in last}, flush=True)


if __name__ == "__main__":
    main()

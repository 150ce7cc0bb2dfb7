"""Write docs/methods/catalogue.md: every objective, what it needs, its settings, and what was measured.

`python -m scripts.site.catalogue` writes the page from the classes, from configs/methods and from
docs/studies/objectives.csv; a test compares the page with them.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from pl_prefopt import objectives
from pl_prefopt.objectives import Needs, Objective

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "methods" / "catalogue.md"
MEASURED = ROOT / "docs" / "studies" / "objectives.csv"
MEASURES = {
    "ranking_accuracy": "ranking accuracy",
    "accuracy": "accuracy",
    "spearman": "Spearman",
    "log_ratio_margin_0": "log-ratio margin",
    "length_bias": "length bias",
}
_HEAD = """\
# All objectives

This page is generated from the classes, from `configs/methods/` and from the study's results by
`python -m scripts.site.catalogue`. [Which method](index.md) helps to choose;
`prefopt list objectives --data pairs --references 0` filters the list by the rows and references you have.

**Data**: `pairs` are two responses of which one is better, `lists` are more of them, `unpaired` are single
labelled responses, `scores` are grades that mean more than an order. **Memory** is what a step holds in
addition to the policy's own.
"""


class Method(NamedTuple):
    """A file of configs/methods: its name, its settings and the objective that they make."""

    name: str
    settings: dict[str, Any]
    needs: Needs


def entries() -> dict[str, type[Objective]]:
    """Return the objectives that the catalogue shows, by name: those that say when to use them."""
    classes = {name: getattr(objectives, name) for name in objectives.__all__}
    return {
        name: one
        for name, one in classes.items()
        if inspect.isclass(one) and issubclass(one, Objective) and vars(one).get("use_when")
    }


@cache
def methods() -> dict[str, list[Method]]:
    """Return the files of configs/methods by the name of their objective's class."""
    found: dict[str, list[Method]] = defaultdict(list)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    for path in sorted((ROOT / "configs" / "methods").glob("*.yaml")):
        part = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]["objective"]
        objective = parser.instantiate(parser.parse_object({"objective": deepcopy(part)})).objective
        found[type(objective).__name__].append(Method(path.stem, part.get("init_args", {}), objective.needs))
    return found


def page() -> str:
    """Return the page's text."""
    families: dict[str, list[str]] = defaultdict(list)
    known = methods()
    for name, one in entries().items():
        families[importlib.import_module(one.__module__).PAGE].append(_row(name, one, known.get(name, [])))
    parts = [_HEAD]
    for address, rows in sorted(families.items(), key=lambda item: _title(item[0])):
        parts.append(f"## [{_title(address)}]({Path(address).name})\n")
        parts.append("| objective | loss | data | references | memory | use it when | files |")
        parts.append("|---|---|---|---|---|---|---|")
        parts += [*sorted(rows), ""]
    return "\n".join([*parts, *_settings(known), *_measured(known)])


def _row(name: str, one: type[Objective], files: list[Method]) -> str:
    fewest, most = one.references
    references = (
        f"{fewest}" if fewest == most else f"{fewest} or more" if most is None else f"{fewest}–{most}"
    )
    what = (inspect.getdoc(one) or "").partition("\n")[0].replace("``", "`")
    named = ", ".join(f"`{file.name}`" for file in files) or "–"
    cells = [
        f"`{name}`",
        what,
        ", ".join(one.data),
        references,
        _memory(one, files),
        vars(one)["use_when"],
        named,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _memory(one: type[Objective], files: list[Method]) -> str:
    needs = files[0].needs if files else Needs()
    parts = []
    if one.references[0] and needs.tokens is not None and needs.tokens.asks_references:
        parts.append("the references, live")
    elif one.references[0]:
        parts.append("the references, or nothing with cached log-probs")
    if needs.tokens is not None and needs.tokens.kl:
        parts.append("one chunk of logits of each model")
    elif needs.tokens is not None and needs.tokens.collisions:
        parts.append("one chunk of the policy's logits")
    if needs.views:
        parts.append("a second pass")
    return "; ".join(parts) or "nothing"


def _title(address: str) -> str:
    text = (ROOT / "docs" / address).read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("# ")


def _settings(known: dict[str, list[Method]]) -> Iterator[str]:
    yield "## Settings of the files\n"
    yield "| file | class | settings |\n|---|---|---|"
    rows = [(file.name, name, file.settings) for name, files in known.items() for file in files]
    for file, name, settings in sorted(rows):
        yield f"| `{file}` | `{name}` | {_shown(settings)} |"
    yield ""


def _shown(settings: dict[str, Any]) -> str:
    plain = {key: value for key, value in settings.items() if key != "pairing"}
    return ", ".join(f"`{key}` {_value(value)}" for key, value in plain.items()) or "none"


def _value(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        inner = _shown(value.get("init_args", {}))
        return f"{value['class_path'].rpartition('.')[2]}" + (f" ({inner})" if inner != "none" else "")
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_value(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "none"
    return textwrap.shorten(str(value), width=60, placeholder=" …")  # in one line, as a cell must be


def _measured(known: dict[str, list[Method]]) -> Iterator[str]:
    """Yield the table of the study: the mean over seeds and its 95 % interval."""
    yield "## Measured\n"
    yield (
        "SmolLM2-135M-Instruct, rows of at most 128 tokens, by `scripts/studies/objectives.py`: held-out "
        "values after training, mean over seeds ± half of the 95 % interval. "
        "[The study](../studies/objectives.md) has the setting and what the numbers say.\n"
    )
    results: dict[str, list[dict[str, str]]] = defaultdict(list)
    if MEASURED.exists():
        with MEASURED.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                results[row["method"]].append(row)
    yield f"| file | seeds | {' | '.join(MEASURES.values())} |\n|---|---|{'---|' * len(MEASURES)}"
    names = sorted(file.name for files in known.values() for file in files)
    for name in names:
        if runs := results.get(name, []):
            cells = [_interval([float(run[key]) for run in runs if run[key]]) for key in MEASURES]
            yield f"| `{name}` | {len(runs)} | {' | '.join(cells)} |"
    yield f"\nNot measured: {', '.join(f'`{name}`' for name in names if name not in results)}.\n"


# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    degrees = len(values) - 1
    half = _T.get(degrees, 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

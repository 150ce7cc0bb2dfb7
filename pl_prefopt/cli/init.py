"""`prefopt init`: writes a commented configuration for a method, a file of rows and hardware."""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pl_prefopt.cli.class_sources import ClassSource, constant, find_class
from pl_prefopt.cli.config_files import find, names
from pl_prefopt.cli.data import layouts_of, named_pairs
from pl_prefopt.data.cache import Cache
from pl_prefopt.data.sources import Source, check_names
from pl_prefopt.data.store import store_rows
from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.files import atomic_write
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.yaml_files import read_yaml

_MOST_ROWS = 1000
"""The rows that are looked at, from the start of the file."""

_COMMENTS = {
    "seed_everything": "The seed of sampling, initialisation and the order of the rows.",
    "trainer": "Lightning's Trainer; `prefopt fit --help trainer` lists its settings.",
    "trainer.max_epochs": "Passes over the training rows.",
    "trainer.accumulate_grad_batches": "Batches per optimiser step.",
    "model.init_args.policy": "The model to train.",
    "model.init_args.policy.lora": "peft.LoraConfig; without this section, all weights are trained.",
    "model.init_args.optimizer": "On the command line: --lr.",
    "model.init_args.objective": "Its settings are explained by `prefopt fit --model.help CLASS`.",
    "references": "The models that the policy is compared with; [] if the objective needs none.",
    "data.held_out": "The fraction of the rows, or their number, that is held out for validation.",
    "data.batch_size": "Prompts per batch and device.",
    "data.max_prompt_length": "In tokens; longer prompts are truncated on the left.",
    "data.max_response_length": "In tokens; longer responses are truncated on the right.",
}


def init(arguments: list[str]) -> None:
    """Run ``prefopt init`` with the given command-line arguments."""
    options = _parse(arguments)
    out = Path(options.out)
    if os.path.lexists(out):
        raise ConfigError(f"Expected --out to be a new file, but {out} exists.")
    files = [read_yaml(Path(_config(*each))) for each in _parts(options)]
    columns = dict(named_pairs(options.columns))
    check_names(columns)
    settings: Any = {}
    for file in files:
        settings = _merged(settings, file)
    objective = settings["model"]["init_args"]["objective"]["class_path"]
    rows = _described(options.data, columns, objective)
    own = {"train": options.data, **({"columns": columns} if columns else {})}
    settings = _merged(settings, {"data": own, "model": {"init_args": {"policy": {"name": options.policy}}}})
    settings["data"] = {"train": options.data, **settings["data"]}
    comments = {**_COMMENTS, "data.train": rows, "model": _use_when(objective)}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    head = [
        f"# Written by `prefopt init {shlex.join(arguments)}`.",
        f"# Train with `prefopt fit -c {out}`; add `--print_config` to see all settings.",
    ]
    tail = [
        "# End the run after three validations without a better best.monitor:",
        "# early_stop: {patience: 3}",
    ]
    with atomic_write(out) as draft:
        lines = [*head, *_commented(text.splitlines(), comments), *tail]
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(rows)
    if "SET-ME" in text:
        print(f"Replace what is called SET-ME in {out}.")
    print(f"Wrote {out}. Next, for example:\n  prefopt fit -c {out}")


def _parse(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="prefopt init",
        description="Write a commented configuration for a method, a file of rows and hardware.",
    )
    parser.add_argument("--data", required=True, help="The training rows: a file, folder or hub name.")
    parser.add_argument("--method", default="dpo", help="One of `prefopt configs methods`; dpo by default.")
    parser.add_argument(
        "--hardware", default="cpu", help="One of `prefopt configs hardware`; cpu by default."
    )
    parser.add_argument(
        "--policy", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="The model's folder or hub name."
    )
    parser.add_argument(
        "--columns",
        nargs="*",
        default=[],
        metavar="OURS=THEIRS",
        help="Our names of columns and those of the file, such as prompt=question.",
    )
    parser.add_argument("--out", default="prefopt.yaml", help="The file to write; prefopt.yaml by default.")
    return parser.parse_args(arguments)


def _parts(options: Any) -> list[tuple[str, str]]:
    return [("", "base"), ("methods", options.method), ("hardware", options.hardware)]


def _config(folder: str, name: str) -> str:
    """Return the path of a configuration of the package."""
    group = [each for each in names() if each.startswith(f"{folder}/")]
    whole = f"{folder}/{name.removeprefix(f'{folder}/')}" if folder else name
    if folder and whole not in group:
        short = [each.partition("/")[2] for each in group]
        raise ConfigError(
            f"there is no configuration '{whole}'{suggest(name, short) or '.'} `prefopt configs {folder}` "
            "lists them."
        )
    return find(whole)


def _merged(earlier: Any, later: Any) -> Any:
    if not isinstance(earlier, Mapping) or not isinstance(later, Mapping):
        return later
    return {**earlier, **{key: _merged(earlier.get(key), value) for key, value in later.items()}}


def _described(path: str, columns: Mapping[str, str], objective: str) -> str:
    """Return what the rows are taken for.

    Raises:
        ConfigError: if the objective doesn't learn from such rows.
    """
    source = Source.of(path)
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder)
        store = store_rows(cache, source, on_bad_row="skip", max_rows=_MOST_ROWS, columns=columns)
        kinds, count = _kinds(store.rows), len(store.rows)
        skipped = f"; {store.skipped} bad rows, see `prefopt data`" if store.skipped else ""
    layouts = ", ".join(f"{name} {many}" for name, many in layouts_of(source, columns, _MOST_ROWS).items())
    found = find_class(objective)
    known = constant(found, "data") if isinstance(found, ClassSource) else None
    if known and not set(known) & kinds:
        raise ConfigError(
            f"{objective.rpartition('.')[2]} learns from {' or '.join(known)}, but {path} has "
            f"{' and '.join(sorted(kinds))}: `prefopt list objectives --data {min(kinds)}` lists methods for "
            "such rows."
        )
    first = "The first " if count == _MOST_ROWS else ""
    return f"{first}{count} rows of {source.label}: {', '.join(sorted(kinds))} (layouts: {layouts}){skipped}."


def _kinds(rows: Sequence[PreferenceRow]) -> set[str]:
    """Return the kinds of rows, as ``prefopt list objectives --data`` names them."""
    found = {"unpaired" if len(row.responses) == 1 else "pairs" for row in rows}
    found |= {"lists" for row in rows if len(row.responses) > 2}
    return found | {"scores" for row in rows if row.graded}


def _use_when(objective: str) -> str:
    found = find_class(objective)
    return str(constant(found, "use_when") or "") if isinstance(found, ClassSource) else ""


def _commented(lines: Sequence[str], comments: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a YAML text, each setting with a comment in ``comments`` after that."""
    within: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        if ":" in line and not line.lstrip().startswith("- "):
            within = [*within[:depth], line.strip().partition(":")[0]]
            comment = comments.get(".".join(within))
            if comment:
                yield f"{line[: 2 * depth]}# {comment}"
        yield line

"""`prefopt adapt`: fits a trained reward model to new users, or to a context, from a few labelled pairs."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from pl_prefopt.cli.chosen_policy import ChosenPolicy
from pl_prefopt.cli.config_diagnostics import make_importable
from pl_prefopt.cli.export_reward import described_head
from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.data import Prompts, Source
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import without_dots
from pl_prefopt.modules import PeerRewardModule, RewardModule
from pl_prefopt.modules.adapting import check_labelled, encode, save_adapted, state_pairs
from pl_prefopt.modules.checkpoint_files import read_head
from pl_prefopt.modules.reward import LEARNED
from pl_prefopt.modules.reward_folders import unbuilt_head
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.saved_settings import FILE_NAME, read_saved


def adapt(arguments: list[str]) -> None:
    """Run ``prefopt adapt`` with the given command-line arguments."""
    parser = PlainParser(
        prog="prefopt adapt",
        description="Fit a trained reward model to new users, or its router to a context, from a few pairs.",
    )
    parser.add_argument("run", type=str, help="A run, whose last checkpoint is taken, or a checkpoint.")
    parser.add_argument("data", type=str, help="Labelled pairs: a file, a folder or a data set of the hub.")
    parser.add_argument("--out", type=str, required=True, help="The checkpoint to write, NAME.ckpt.")
    parser.add_argument(
        "--step", type=float | None, default=None, help="The step of Hedge, for a router; no published value."
    )
    parser.add_argument(
        "--columns",
        type=dict[str, str],
        default={},
        help="Our names of columns and those of the data, beyond the run's own: --columns.user rater.",
    )
    parser.add_argument("--split", type=str, default="train", help="The split of a folder or hub data set.")
    settings = parser.parse_args(arguments)
    source = Source(path=settings.data, split=settings.split)
    out = without_dots(Path(settings.out))
    for sentence in adapt_run(settings.run, source, out, step=settings.step, columns=settings.columns):
        print(sentence)
    print(f"Wrote {settings.out}")


def adapt_run(
    run: str, source: Source, out: Path, *, step: float | None, columns: Mapping[str, str]
) -> list[str]:
    """Write a checkpoint of a run with new users, or with the weights of a context.

    Args:
        run: the run or one of its checkpoints.
        source: the pairs.
        out: the checkpoint to write.
        step: the step of Hedge, for a router.
        columns: our names of columns, and those of the source; the run's ``data.columns`` for others.

    Returns:
        Sentences about what was found.

    Raises:
        ConfigError: if the run has no reward head, or ``out`` can't be written.
        DataError: if the rows can't be used.
    """
    if out.suffix != ".ckpt" or out.exists():
        raise ConfigError(f"Expected --out to be a new file ending in .ckpt, got {out}.")
    policy = ChosenPolicy(run)
    checkpoint = policy.checkpoint
    if checkpoint is None:
        raise ConfigError(f"Expected a run or a checkpoint of one, got {run}: name runs/NAME.")
    rest = read_head(checkpoint).rest
    described = described_head(rest)
    if described is None:
        raise ConfigError(f"Expected the run of a reward model, but {checkpoint} has no reward head.")
    config: Any = read_saved(checkpoint.resolve().parent.parent / FILE_NAME)
    kind = _module_of(str(config["model"]["class_path"]))
    rows = rows_as_trained(config.get("data") or {}, source, columns)
    check_labelled(rows, source.label)
    unbuilt_head(described, rest.get(LEARNED) or {}).check_adaptable(rows, step)
    settings = config["model"]["init_args"]
    encoded = encode(rows, policy.renderer(), settings.get("truncated_responses", "warn"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = (config.get("trainer") or {}).get("precision")
    bare: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    precision = Trainer(accelerator=device, devices=1, precision=asked, **bare).precision_plugin
    module = kind.load_from_checkpoint(checkpoint, map_location=device)
    found = module.reward_head.adapt(state_pairs(module, rows, encoded, precision), step)
    save_adapted(checkpoint, module, out)
    return found


def _module_of(path: str) -> type[RewardModule]:
    """Return the class of a run's module, which may be one of the user's own."""
    make_importable([path])
    module, _, name = path.rpartition(".")
    kind: type[RewardModule] = getattr(importlib.import_module(module), name)
    if issubclass(kind, PeerRewardModule):
        raise ConfigError(
            f"{path} has two models, of which `prefopt adapt` would adapt one: use a run of RewardModule."
        )
    return kind


def rows_as_trained(
    data: Mapping[str, Any], source: Source, columns: Mapping[str, str]
) -> list[PreferenceRow]:
    """Return rows with the scores that they would have as the run's training rows.

    Args:
        data: the run's settings of data, of which ``columns`` and ``aspects`` are read.
        source: the rows.
        columns: our names of columns and those of the source, in place of the run's where they name the same.
    """
    names = {**(data.get("columns") or {}), **columns}
    prompts = Prompts(source=source, columns=names, aspects=data.get("aspects") or {})
    with tempfile.TemporaryDirectory() as scratch:
        return [
            dataclasses.replace(row, origin=f"row {number + 1} of {source.label}")
            for number, row in prompts.rows(Path(scratch))
        ]

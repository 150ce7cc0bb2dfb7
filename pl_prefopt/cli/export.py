"""A trained policy in the formats of plain transformers and PEFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from pl_prefopt.cli.card import read_card
from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.files import bring_back, new_folder, without_dots
from pl_prefopt.modules.checkpoint_files import read_head, read_weights
from pl_prefopt.policies import PolicySpec, build_policy
from pl_prefopt.policies.spec import Dtype
from pl_prefopt.saved_settings import FILE_NAME, read_saved

_PREFIX = "policy."


def export(arguments: list[str]) -> None:
    """Run ``prefopt export`` with the given command line arguments."""
    parser = ArgumentParser(
        prog="prefopt export", description="Write a trained policy for transformers and PEFT."
    )
    parser.add_argument("ckpt_path", type=str, help="A checkpoint of a run: runs/NAME/checkpoints/last.ckpt.")
    parser.add_argument("--out", type=str, required=True, help="The folder to write; it must not exist yet.")
    parser.add_argument("--merge", type=bool, default=False, help="Merge the adapter into the base model.")
    parser.add_argument("--dtype", type=Dtype | None, default=None, help="A whole model's, if not the run's.")
    parser.add_argument("--config", type=str | None, default=None, help="The run's config.yaml, if it moved.")
    settings = parser.parse_args(arguments)
    export_policy(
        Path(settings.ckpt_path),
        without_dots(Path(settings.out)),
        merge=settings.merge,
        dtype=settings.dtype,
        config=settings.config,
    )
    print(f"Wrote {settings.out}")


def export_policy(
    ckpt_path: Path, out: Path, *, merge: bool, dtype: Dtype | None = None, config: str | None = None
) -> None:
    """Write the checkpoint's policy, its tokeniser and a model card to ``out``.

    Args:
        ckpt_path: the checkpoint.
        out: a new folder.
        merge: merge an adapter into its base; without, it becomes a PEFT folder. A fully trained policy is a
            whole model either way.
        dtype: a whole model's type, the policy's by default. An adapter merged into bfloat16 is rounded.
        config: the run's configuration, by default ``config.yaml`` of the checkpoint's run.

    Raises:
        ConfigError: if the checkpoint or its configuration is missing, or ``out`` exists.
    """
    _check_out(out)
    _check_is_checkpoint(ckpt_path)
    config_path = Path(config) if config else ckpt_path.resolve().parent.parent / FILE_NAME
    bring_back(ckpt_path)
    if not ckpt_path.exists():
        raise ConfigError(f"Expected a checkpoint, but {ckpt_path} is missing.")
    spec = read_policy_spec(config_path)
    if dtype is not None:
        spec = dataclasses.replace(spec, dtype=dtype)
    weights = _trained_weights(ckpt_path)
    if merge:
        # Merging into 4-bit weights would round the adapter away.
        spec = dataclasses.replace(spec, four_bit=None)
    policy: Any = build_policy(spec)
    _load(policy, weights, f"{ckpt_path} doesn't fit the policy of {config_path}")
    if merge and spec.has_adapter:
        policy = policy.merge_and_unload()
    card = read_card(config_path, read_head(ckpt_path).rest, is_adapter=spec.has_adapter and not merge)
    with new_folder(out) as draft:
        policy.save_pretrained(draft)
        spec.load_tokenizer().save_pretrained(draft)
        card.write(draft)


def _check_out(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"Expected --out to be a new folder, but {out} exists.")
    for parent in out.parents:
        if parent.is_file():
            raise ConfigError(f"Expected --out to be a new folder, but {parent} is a file.")


def _check_is_checkpoint(path: Path) -> None:
    """Raise a ``ConfigError`` with the checkpoints in ``path`` if that is a run's folder."""
    if path.suffix == ".ckpt" or not path.is_dir():
        return
    found = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
    held = f"of those in it: {', '.join(map(str, found))}" if found else "of a run; there is none in it"
    raise ConfigError(f"Expected a checkpoint, but {path} is a folder: name one {held}.")


def read_policy_spec(config: Path) -> PolicySpec:
    """Return the policy that a run's ``config.yaml`` describes.

    Raises:
        ConfigError: if there is no such file, or it is no such configuration.
    """
    if not config.is_file():
        raise ConfigError(f"Expected the run's configuration at {config}: name it with --config.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--policy", type=PolicySpec)
    try:
        described = read_saved(config)["model"]["init_args"]["policy"]
        spec: PolicySpec = parser.instantiate_classes(parser.parse_object({"policy": described})).policy
    except (TypeError, KeyError, ArgumentError) as error:
        raise ConfigError(
            f"{config} is no configuration that `prefopt fit` wrote ({first_line(error)}): name the run's "
            "config.yaml with --config."
        ) from error
    return spec


def _load(policy: nn.Module, weights: Mapping[str, torch.Tensor], unfit: str) -> None:
    """Put a checkpoint's weights into the policy; ``unfit`` begins the sentence on one that has no place."""
    places = policy.state_dict()
    for name, weight in weights.items():
        if name not in places:
            raise ConfigError(f"{unfit}: '{name}' is unknown.")
        if places[name].shape != weight.shape:
            raise ConfigError(
                f"{unfit}: '{name}' has the shape {list(weight.shape)}, expected {list(places[name].shape)}."
            )
    missing = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    missing = [name for name in missing if name not in weights]
    if missing:
        raise ConfigError(f"{unfit}: it lacks '{missing[0]}'.")
    policy.load_state_dict(weights, strict=False)


def _trained_weights(ckpt_path: Path) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(_PREFIX): weight
        for name, weight in read_weights(ckpt_path).items()
        if name.startswith(_PREFIX)
    }

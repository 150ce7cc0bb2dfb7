"""`prefopt export`: writes a trained policy for plain transformers and PEFT."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pl_prefopt.cli.card import Kind, read_card
from pl_prefopt.cli.export_check import compare, score, trial_rows, unit_of
from pl_prefopt.cli.export_reward import described_head, export_reward, is_classifier
from pl_prefopt.cli.hub import HubModel
from pl_prefopt.cli.parser import Parser, RefusedError
from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.data.renderer import TEMPLATE_NAMES, read_template, with_template
from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.files import new_folder, restore_backup, without_dots
from pl_prefopt.modules.checkpoint_files import CheckpointHead, read_head, read_weights
from pl_prefopt.modules.checkpoints import check_description, describe
from pl_prefopt.modules.reward import freeze_output_embeddings
from pl_prefopt.paths import is_path
from pl_prefopt.policies import PolicySpec, alters_base, build_frozen, build_policy, merged
from pl_prefopt.policies.spec import Dtype
from pl_prefopt.saved_settings import FILE_NAME, read_saved

HEADS_FILE = "heads.safetensors"
_PREFIX = "policy."


def export(arguments: list[str]) -> None:
    """Run ``prefopt export`` with the given command-line arguments."""
    parser = PlainParser(
        prog="prefopt export", description="Write a trained policy for transformers and PEFT."
    )
    parser.add_argument("ckpt_path", type=str, help="A checkpoint of a run: runs/NAME/checkpoints/last.ckpt.")
    parser.add_argument("--out", type=str, required=True, help="The folder to write; it must not exist yet.")
    parser.add_argument("--merge", type=bool, default=False, help="Merge the adapter into the base model.")
    parser.add_argument(
        "--dtype", type=Dtype | None, default=None, help="The dtype of a whole model; the run's by default."
    )
    parser.add_argument(
        "--config", type=str | None, default=None, help="The run's config.yaml, if it was moved."
    )
    parser.add_argument(
        "--push-to-hub",
        type=str | None,
        default=None,
        help="Upload the folder to the Hugging Face hub too: NAMESPACE/NAME, created if it doesn't exist. "
        "The token is that of HF_TOKEN or of `hf auth login`.",
    )
    parser.add_argument(
        "--private",
        type=bool | None,
        default=None,
        help="Whether the model on the hub is private. By default an existing one stays as it is, and a new "
        "one is public unless its organisation's default is private.",
    )
    settings = parser.parse_args(arguments)
    out, hub = without_dots(Path(settings.out)), None
    if settings.push_to_hub is not None:
        hub = HubModel(settings.push_to_hub, settings.private)
        hub.check(out)
    elif settings.private is not None:
        raise ConfigError("--private is about the model on the hub: add --push-to-hub NAMESPACE/NAME.")
    export_policy(
        Path(settings.ckpt_path),
        out,
        merge=settings.merge,
        dtype=settings.dtype,
        config=settings.config,
        hub_name=hub.name if hub else None,
    )
    print(f"Wrote {settings.out}")
    if hub is not None:
        print(f"Uploaded it to {hub.push(out)}")


def export_policy(
    ckpt_path: Path,
    out: Path,
    *,
    merge: bool,
    dtype: Dtype | None = None,
    config: str | None = None,
    hub_name: str | None = None,
) -> None:
    """Write the checkpoint's policy, its tokeniser and a model card to ``out``.

    Args:
        ckpt_path: the checkpoint.
        out: a new folder.
        merge: merge an adapter into its base model; otherwise it is written as a PEFT folder. A fully trained
            policy is written as a whole model in both cases.
        dtype: the dtype of a whole model, the policy's by default. Merging an adapter into bfloat16 rounds
            it.
        config: the run's configuration; by default ``config.yaml`` of the checkpoint's run.
        hub_name: the name that the model will have on the hub, if it is uploaded.

    Raises:
        ConfigError: if the checkpoint or its configuration is missing, ``out`` exists, or an adapter for the
            hub has a local base.
    """
    out = _checked_out(out)
    _check_is_checkpoint(ckpt_path)
    config_path = Path(config) if config else ckpt_path.resolve().parent.parent / FILE_NAME
    restore_backup(ckpt_path)
    if not ckpt_path.exists():
        raise ConfigError(f"Expected a checkpoint, but {ckpt_path} is missing.")
    spec = read_policy_spec(config_path)
    head = read_head(ckpt_path)
    kind = _kind(spec, head.rest, merge=merge)
    if spec.resize_embeddings is not None and kind == "adapter":
        raise ConfigError(
            "An adapter alone can't be exported after policy.resize_embeddings, since its base lacks the new "
            "tokens: use --merge true."
        )
    if hub_name is not None and kind == "adapter":
        _check_base_is_public(spec, out, hub_name)
    card = read_card(config_path, ckpt_path, head.rest, kind=kind)
    card = dataclasses.replace(card, hub_name=hub_name)
    described = describe(card.method, spec, spec.base_identity, spec.adapter_identity)
    check_description(head.rest, described, else_="name its run's config.yaml with --config")
    whole = kind != "adapter"
    if whole and spec.four_bit is not None:
        # Rounding to 4-bit weights would lose the adapter.
        spec = dataclasses.replace(spec, four_bit=None)
        print(
            "The run computed with its base in 4 bits (policy.four_bit); the export has the base in full "
            "precision, so that its scores differ from those of the run."
        )
    tokenizer = _tokenizer(spec, card.config.get("data") or {})
    source = TrainedPolicy(spec, ckpt_path, f"{ckpt_path} doesn't fit the policy of {config_path}")
    if kind in ("classifier", "reward"):
        source = source._replace(has_logits=False)
        with new_folder(out) as draft:
            export_reward(draft, source, head.rest, card.config, tokenizer, dtype=dtype)
            card.write(draft)
        _mention_peer(head)
        return
    with new_folder(out) as draft:
        trial = _write(
            draft, source, trial_rows(spec, card.config.get("data") or {}), whole=whole, dtype=dtype
        )
        _check(draft, source, trial, whole=whole)
        _write_heads(draft, ckpt_path)
        tokenizer.save_pretrained(draft)
        card.write(draft)
    _mention_peer(head)


def _kind(spec: PolicySpec, checkpoint: Mapping[str, Any], *, merge: bool) -> Kind:
    """Return what is exported of a checkpoint; an adapter under a reward head is always merged."""
    if described_head(checkpoint) is not None:
        return "classifier" if is_classifier(checkpoint) else "reward"
    return "adapter" if spec.has_adapter and not merge else "policy"


def _check_base_is_public(spec: PolicySpec, out: Path, hub_name: str) -> None:
    """Raise a ``ConfigError`` if an adapter would name a local folder as its base."""
    named = (spec.adapter_settings() or {}).get("base_model_name_or_path")
    for base in filter(None, (spec.name, named)):
        if is_path(base) or Path(base).exists():
            raise ConfigError(
                "Expected the base of an adapter for the hub to be on the hub, too, got the local folder "
                f"{base}, which nobody else can load: use --merge true; or export without --push-to-hub, set "
                f"base_model_name_or_path in {out / 'adapter_config.json'} to the base's name on the hub, "
                f"and run `hf upload {hub_name} {out}`."
            )


def _mention_peer(head: CheckpointHead) -> None:
    """Say which of two models that review each other has been exported."""
    if any(name.startswith("peer.") for name in head.shapes):
        print("The run trained two models: this is the first, whose metrics it logged; its peer is left out.")


def _tokenizer(spec: PolicySpec, data: Mapping[str, Any]) -> Any:
    """Return the policy's tokeniser, with the chat template that the run has trained on.

    Raises:
        ConfigError: if that was in a file that is gone.
    """
    tokenizer, template = spec.load_tokenizer(), str(data.get("template") or "auto")
    return tokenizer if template in TEMPLATE_NAMES else with_template(tokenizer, read_template(template))


class TrainedPolicy(NamedTuple):
    """The source of the exported policy.

    Attributes:
        spec: the policy before training.
        ckpt_path: the checkpoint.
        unfit: the start of the error message for a checkpoint that does not match the policy.
        has_logits: whether the run computed logits; a reward model needs no output embeddings.
    """

    spec: PolicySpec
    ckpt_path: Path
    unfit: str
    has_logits: bool = True

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Return the trained weights with a prefix, without it."""
        return _trained_weights(self.ckpt_path, prefix=prefix)

    def load(self, *, start: Path | None = None) -> Any:
        """Return the trained policy, after saving the untrained one's adapter to ``start``."""
        policy: Any = build_policy(self.spec, logits=self.has_logits)
        if start is not None:
            policy.save_pretrained(start)
        if not self.has_logits:
            freeze_output_embeddings(policy)
        _load(policy, _trained_weights(self.ckpt_path), self.unfit)
        return policy


class _Trial(NamedTuple):
    """The policy's log-probs of a few rows of tokens.

    Attributes:
        rows: the tokens.
        scores: their log-probs.
        unit: see ``unit_of``.
        copied: whether every weight is written unchanged.
    """

    rows: list[list[int]]
    scores: Tensor
    unit: float
    copied: bool


def _write(
    draft: Path, source: TrainedPolicy, rows: list[list[int]], *, whole: bool, dtype: Dtype | None
) -> _Trial:
    """Write the weights and return the policy's scores of ``rows``; the model is freed on return."""
    spec = source.spec
    converted = not whole and spec.lora is not None and alters_base(spec.lora)
    with TemporaryDirectory() as scratch:
        start = Path(scratch) / "start" if converted else None
        policy = source.load(start=start)
        recast = dtype if whole and dtype != spec.dtype else None
        copied = not (recast or converted or spec.four_bit or (whole and spec.has_adapter))
        trial = _Trial(rows, score(policy, rows), unit_of(policy, spec), copied)
        if recast is not None:
            del policy
            policy = source._replace(spec=dataclasses.replace(spec, dtype=recast)).load()
        if whole and spec.has_adapter:
            policy = merged(policy)
        if start is None:
            policy.save_pretrained(draft)
            return trial
        try:
            # Relative to the plain base: the trained adapter minus the initial one, taken out of the base.
            policy.save_pretrained(draft, path_initial_model_for_weight_conversion=str(start))
        except ValueError as error:
            reason = first_line(error.__context__ or error)
            raise ConfigError(
                f"PEFT can't convert this adapter to the plain base ({reason}): use --merge true."
            ) from error
    return trial


def _write_heads(draft: Path, ckpt_path: Path) -> None:
    """Write the heads that were trained together with the policy, by name."""
    heads = _trained_weights(ckpt_path, prefix="heads.")
    if heads:
        (draft / HEADS_FILE).write_bytes(save({name: weight.contiguous() for name, weight in heads.items()}))
        print(f"The heads trained with the policy are in {HEADS_FILE}.")


def _check(draft: Path, source: TrainedPolicy, trial: _Trial, *, whole: bool) -> None:
    """Load the exported files with plain libraries and compare their scores with the policy's."""
    spec = dataclasses.replace(source.spec, lora=None, adapter=None)
    if whole:
        spec = dataclasses.replace(
            spec, name=str(draft), revision=None, gguf_file=None, dtype="auto", resize_embeddings=None
        )
    else:
        spec = dataclasses.replace(spec, adapter=str(draft))
    model = build_frozen(spec)
    gap = compare(model, trial.rows, trial.scores, max(trial.unit, unit_of(model, spec)))
    if not gap.is_rounding(copied=trial.copied):
        advice = "export the adapter instead, without --merge" if whole else "use --merge true"
        raise ConfigError(
            f"Nothing was exported: the reloaded model differs from the policy. Log-probs per token "
            f"differ by up to {gap.most:.2g} (RMS {gap.mean:.2g}, of which rounding explains "
            f"{gap.rounding:.2g}). If the policy has an adapter, {advice}."
        )


def _checked_out(out: Path) -> Path:
    """Return the output folder with ``..`` and links in its path resolved."""
    if os.path.lexists(out):
        raise ConfigError(f"Expected --out to be a new folder, but {out} exists.")
    for parent in out.parents:
        if parent.is_file():
            raise ConfigError(f"Expected --out to be a new folder, but {parent} is a file.")
    resolved = out.resolve()
    if resolved.exists():
        raise ConfigError(f"Expected --out to be a new folder, but {out} is {resolved}, which exists.")
    return resolved


def _check_is_checkpoint(path: Path) -> None:
    """Raise a ``ConfigError`` if ``path`` is a folder, naming the checkpoints in it."""
    if path.suffix == ".ckpt" or not path.is_dir():
        return
    found = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
    held = f"of those in it: {', '.join(map(str, found))}" if found else "of a run; there is none in it"
    raise ConfigError(f"Expected a checkpoint, but {path} is a folder: name one {held}.")


def read_policy_spec(config: Path) -> PolicySpec:
    """Return the policy that a run's ``config.yaml`` describes.

    Raises:
        ConfigError: if there is no such file, or it is not a run's configuration.
    """
    if not config.is_file():
        raise ConfigError(f"Expected the run's configuration at {config}: name it with --config.")
    parser = Parser(exit_on_error=False)
    parser.add_argument("--policy", type=PolicySpec)
    try:
        described = read_saved(config)["model"]["init_args"]["policy"]
        spec: PolicySpec = parser.instantiate_classes(parser.parse_object({"policy": described})).policy
    except (TypeError, KeyError, RefusedError) as error:
        raise ConfigError(
            f"{config} was not written by `prefopt fit` ({first_line(error)}): name the run's config.yaml "
            "with --config."
        ) from error
    return spec


def _load(policy: nn.Module, weights: Mapping[str, torch.Tensor], unfit: str) -> None:
    """Load a checkpoint's weights into the policy; ``unfit`` starts the error for weights that don't fit."""
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


def _trained_weights(ckpt_path: Path, prefix: str = _PREFIX) -> dict[str, torch.Tensor]:
    weights = read_weights(ckpt_path)
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}

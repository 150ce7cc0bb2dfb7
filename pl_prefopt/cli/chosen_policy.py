"""The policy that a command is given: a run, a checkpoint, a PEFT adapter, or a model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pl_prefopt.cli.export import TrainedPolicy, read_policy_spec
from pl_prefopt.data import Renderer
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import restore_backup
from pl_prefopt.generation import end_tokens
from pl_prefopt.modules.checkpoint_files import read_head
from pl_prefopt.modules.checkpoints import check_description, describe
from pl_prefopt.paths import is_path, missing_folder
from pl_prefopt.policies import PolicySpec, build_frozen, check_saved, merged
from pl_prefopt.policies.spec import sampled_hash
from pl_prefopt.saved_settings import FILE_NAME, read_saved

_LIMITS = ("template", "template_arguments", "max_prompt_length", "max_response_length", "tokenizer")


class Limits(NamedTuple):
    """How prompts become tokens; a run's own, unless a command sets others."""

    template: Any = "auto"
    template_arguments: Mapping[str, Any] | None = None
    max_prompt_length: int | None = 1024
    max_response_length: int | None = 1024
    tokenizer: str | None = None


class ChosenPolicy:
    """A policy that is not loaded yet.

    Args:
        place: a run's folder (its last checkpoint is taken), a checkpoint of a run, the folder of a PEFT
            adapter, the folder of a model, or a model's name on the hub.
        dtype: the dtype in memory; by default the run's, and float32 without a run.

    Raises:
        ConfigError: if there is no such policy.
    """

    def __init__(self, place: str, *, dtype: Any = None) -> None:
        path = Path(place)
        self.place, self.checkpoint = place, _checkpoint_of(path)
        self.limits = Limits()
        if self.checkpoint is not None:
            config = self.checkpoint.resolve().parent.parent / FILE_NAME
            self.spec = read_policy_spec(config)
            self.limits = _limits_of(read_saved(config).get("data") or {})
        elif (path / "adapter_config.json").is_file():
            base = check_saved(place).get("base_model_name_or_path")
            if not base:
                raise ConfigError(f"Expected {place}/adapter_config.json to name its base model.")
            self.spec = PolicySpec(name=str(base), adapter=place)
        elif path.is_dir() or not is_path(place):
            self.spec = PolicySpec(name=place)
        else:
            raise ConfigError(f"Expected a run, a checkpoint, an adapter or a model: {missing_folder(place)}")
        if dtype is not None:
            self.spec = dataclasses.replace(self.spec, dtype=dtype)

    @cached_property
    def identity(self) -> str:
        """A hash of the weights."""
        parts = [self.spec.fingerprint]
        if self.checkpoint is not None:
            files = [self.checkpoint] if self.checkpoint.is_file() else sorted(self.checkpoint.rglob("*"))
            parts += [f"{file.stat().st_size}:{sampled_hash(file)}" for file in files if file.is_file()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first read: frozen, in evaluation mode, on the GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = self._load()
        return model if self.spec.four_bit is not None else model.to(device)

    def renderer(self, limits: Limits | None = None) -> Renderer:
        """Return the renderer of training."""
        chosen = limits or self.limits
        spec = self.spec if chosen.tokenizer is None else PolicySpec(name=chosen.tokenizer)
        return Renderer(
            spec.load_tokenizer(),
            template=chosen.template,
            arguments=chosen.template_arguments,
            max_prompt_length=chosen.max_prompt_length,
            max_response_length=chosen.max_response_length,
        )

    def end_token_ids(self, end: int) -> list[int]:
        """Return the tokens that end a response, without loading the model."""
        from transformers import GenerationConfig

        with suppress(OSError):  # few models have no generation settings
            own = GenerationConfig.from_pretrained(self.spec.name, revision=self.spec.revision)
            return end_tokens(own, end)
        return [end]

    def whole_model(self, folder: Path) -> str:
        """Return what a server can load: the model's own place, or ``folder`` with the adapter merged."""
        if self.checkpoint is None and not self.spec.has_adapter:
            return self.spec.name
        if not (folder / "config.json").is_file():
            model = self._load()
            (merged(model) if self.spec.has_adapter else model).save_pretrained(folder)
            self.spec.load_tokenizer().save_pretrained(folder)
        return str(folder)

    def _load(self) -> Any:
        if self.checkpoint is None:
            return build_frozen(self.spec)
        described = describe("", self.spec, self.spec.base_identity, self.spec.adapter_identity)
        del described["method"]
        head = read_head(self.checkpoint)
        check_description(head.rest, described, else_="name a checkpoint in its own run's folder")
        unfit = f"{self.checkpoint} doesn't fit the policy of its run"
        policy = TrainedPolicy(self.spec, self.checkpoint, unfit).load()
        return policy.eval().requires_grad_(requires_grad=False)


def _checkpoint_of(path: Path) -> Path | None:
    """Return the checkpoint that ``path`` is or, as a run, has; ``None`` if it is neither."""
    if path.suffix == ".ckpt":
        restore_backup(path)
        if not path.exists():
            raise ConfigError(f"Expected a checkpoint, but {path} is missing.")
        return path
    if not (path / FILE_NAME).is_file():
        return None
    last = path / "checkpoints" / "last.ckpt"
    restore_backup(last)
    if not last.exists():
        raise ConfigError(f"Expected the run {path} to have a last checkpoint, but {last} is missing.")
    return last


def _limits_of(data: Mapping[str, Any]) -> Limits:
    return Limits(**{name: data[name] for name in _LIMITS if name in data})

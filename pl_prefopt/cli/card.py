"""The model card of an exported policy: what it is, what it was trained on and how, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.evaluations import Evaluation, read_evaluations
from pl_prefopt.metric_info import find_info, grouped
from pl_prefopt.metrics import REGISTRY
from pl_prefopt.modules.checkpoint_files import ADAPTED, read_head
from pl_prefopt.paths import paths_in
from pl_prefopt.saved_settings import read_saved

_PACKAGES = ("pl-prefopt", "torch", "lightning", "transformers", "peft", "bitsandbytes")
# What a folder has: an adapter, a causal language model, a reward model that transformers loads as a
# classifier, or one with another head.
Kind = Literal["adapter", "policy", "classifier", "reward"]
# Each kind's library and task, as the hub names them, and its words in the title.
_KINDS: dict[Kind, tuple[str, str, str]] = {
    "adapter": ("peft", "text-generation", "adapter for"),
    "policy": ("transformers", "text-generation", "model trained from"),
    "classifier": ("transformers", "text-classification", "reward model trained from"),
    "reward": ("pl-prefopt", "text-classification", "reward model trained from"),
}
_SPLITS = ("train", "val", "test")
_HELD_OUT = "held out from the training rows"
_HUB_DATA = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.jsonl)(?<!\.json)(?<!\.csv)(?<!\.parquet)(?<!\.gz)")
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True, kw_only=True)
class Card:
    """The contents of a model card.

    Attributes:
        config: the run's resolved configuration.
        evaluations: the run's evaluations, of any checkpoint.
        data: ``rows``, ``skipped`` and ``fingerprint`` per split, as stored in the checkpoint.
        steps: number of optimiser steps of the checkpoint.
        kind: what the folder has.
        hub_name: the model's name on the hub, ``None`` if it is not there.
    """

    config: Mapping[str, Any]
    evaluations: Sequence[Evaluation]
    data: Mapping[str, Mapping[str, Any]]
    steps: int
    kind: Kind
    hub_name: str | None = None

    def write(self, folder: Path) -> None:
        """Write ``README.md``, replacing an existing one but keeping its tags."""
        file = folder / "README.md"
        known = ModelCard.load(file).data if file.is_file() else ModelCardData()
        header = "---\n" + self._header(known).to_yaml() + "\n---\n"
        ModelCard(header + self._body()).save(file)

    @property
    def _model(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self.config["model"]["init_args"]
        return settings

    @property
    def _base(self) -> str:
        return str(self._model["policy"]["name"])

    @property
    def method(self) -> str:
        """The objective's name."""
        return _class_name(self._model["objective"])

    def _header(self, known: ModelCardData) -> ModelCardData:
        paths = [path for split in _SPLITS for path in paths_in(self.config["data"].get(split))]
        datasets = [path for path in paths if _is_hub_data(path)]
        library, task, _ = _KINDS[self.kind]
        return ModelCardData(
            # Local folders mean nothing on the hub.
            base_model=None if Path(self._base).exists() else self._base,
            datasets=sorted(set(datasets)) or None,
            library_name=library,
            pipeline_tag=task,
            tags=sorted({*self._tags(known), "preference-optimisation", "pl-prefopt", self.method.lower()}),
        )

    def _tags(self, known: ModelCardData) -> list[str]:
        here = Path(self._base).exists()
        return [tag for tag in known.tags or [] if not (here and tag.startswith("base_model:"))]

    def _body(self) -> str:
        parts = [
            f"\n# {escaped(self.method)} {_KINDS[self.kind][2]} {escaped(_public(self._base))}",
            f"Trained with {escaped(self.method)} by pl_prefopt for {self.steps} steps; exported on "
            f"{date.today():%Y-%m-%d}.",
            *self._precision(),
            "## Use",
            self._use(),
            "## Method and settings",
            _fenced(_yaml(_without_places(self._settings())), "yaml"),
            "## Data",
            self._data(),
            "## Metrics",
            self._metrics(),
            "## Versions",
            _table(("package", "version"), _versions()),
        ]
        return "\n\n".join(parts) + "\n"

    def _precision(self) -> Iterable[str]:
        """Yield a sentence if the metrics are those of a base in another precision."""
        if self.kind != "adapter" and self._model["policy"].get("four_bit"):
            yield (
                "It was trained and measured with its base in 4 bits, and this is the base in full "
                "precision, so that its scores differ from those of the run."
            )

    def _use(self) -> str:
        place = self.hub_name or "FOLDER"
        if self.kind == "adapter":
            base = f"AutoModelForCausalLM.from_pretrained({_public(self._base)!r})"
            lines = [
                "from peft import PeftModel",
                "from transformers import AutoModelForCausalLM\n",
                f'model = PeftModel.from_pretrained({base}, "{place}")',
            ]
        elif self.kind == "reward":
            fetched = [] if self.hub_name is None else ["from huggingface_hub import snapshot_download"]
            folder = f'snapshot_download("{place}")' if fetched else f'"{place}"'
            lines = [
                *fetched,
                "from pl_prefopt.modules import RewardScorer\n",
                f"scorer = RewardScorer.load({folder})",
            ]
        else:
            name = f"AutoModelFor{'CausalLM' if self.kind == 'policy' else 'SequenceClassification'}"
            lines = [f"from transformers import {name}\n", f'model = {name}.from_pretrained("{place}")']
        return _fenced("\n".join(lines), "python")

    def _settings(self) -> dict[str, Any]:
        trainer, data, model = self.config["trainer"], self.config["data"], self._model
        return {
            "objective": _with_short_class(model["objective"]),
            "references": [_with_short_class(member) for member in self._references()],
            "policy": {key: value for key, value in model["policy"].items() if value or value == 0},
            "optimizer": model.get("optimizer"),
            "schedule": model.get("schedule"),
            "layout": model.get("layout"),
            "seed": self.config.get("seed_everything"),
            "trainer": _picked(
                trainer,
                "precision",
                "devices",
                "num_nodes",
                "strategy",
                "max_epochs",
                "max_steps",
                "accumulate_grad_batches",
                "gradient_clip_val",
            ),
            "data": _picked(
                data,
                "batch_size",
                "max_tokens_per_batch",
                "max_prompt_length",
                "max_response_length",
                "template",
                "held_out",
                "max_rows",
            ),
        }

    def _references(self) -> list[Any]:
        return list((self.config.get("references") or {}).get("members") or [])

    def _data(self) -> str:
        rows = [
            (
                split,
                _sources(self.config["data"].get(split)) or _HELD_OUT,
                str(found["rows"]),
                str(found["skipped"]),
                str(found["fingerprint"]),
            )
            for split, found in self.data.items()
        ]
        if not rows:
            return "The checkpoint does not say what rows it was trained on."
        return _table(("split", "source", "rows", "rows left out", "fingerprint"), rows)

    def _metrics(self) -> str:
        """Return the evaluations of the exported checkpoint only."""
        own = [one for one in self.evaluations if self._is_of_these_weights(one)]
        if own:
            return "\n\n".join(_measured(one) for one in own)
        others = ", only of others" if self.evaluations else ""
        return f"The run folder has no metrics of this checkpoint{others}."

    def _is_of_these_weights(self, evaluation: Evaluation) -> bool:
        elsewhere = Path(evaluation.checkpoint or "").is_absolute()  # another run's
        return evaluation.step in (None, self.steps) and not elsewhere


def read_card(config: Path, path: Path, checkpoint: Mapping[str, Any], *, kind: Kind) -> Card:
    """Return the card of a run's checkpoint.

    Args:
        config: the run's ``config.yaml``; ``metrics.json`` is expected in the same folder.
        path: the checkpoint's.
        checkpoint: its content without the weights.
        kind: what is exported.

    Raises:
        ConfigError: if ``metrics.json`` is damaged.
    """
    return Card(
        config=_with_found_rate(read_saved(config), checkpoint),
        evaluations=_of_same_head(
            _read_metrics(config.parent / "metrics.json"), config.parent, path, checkpoint
        ),
        data=checkpoint.get("PreferenceDataModule", {}).get("splits", {}),
        steps=checkpoint.get("global_step", 0),
        kind=kind,
    )


def _of_same_head(
    evaluations: Sequence[Evaluation], run: Path, path: Path, checkpoint: Mapping[str, Any]
) -> list[Evaluation]:
    """Return the evaluations of a checkpoint of `prefopt adapt`, or those of no such checkpoint.

    That command keeps the step, so that the step doesn't tell the two apart.
    """
    own = path.resolve() if checkpoint.get(ADAPTED) else None
    return [one for one in evaluations if _adapted_file(one, run) == own]


def _adapted_file(evaluation: Evaluation, run: Path) -> Path | None:
    """Return the checkpoint of an evaluation if `prefopt adapt` wrote it."""
    path = (run / (evaluation.checkpoint or "")).resolve()
    return path if path.is_file() and read_head(path).rest.get(ADAPTED) else None


def _with_found_rate(config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the run's actual learning rate, which a search may have changed."""
    groups = [group for state in checkpoint.get("optimizer_states", ()) for group in state["param_groups"]]
    model = config["model"]["init_args"]
    settings = (model.get("optimizer") or {}).get("init_args") or {}
    if not groups or "lr" not in settings:
        return config
    found = {**settings, "lr": groups[0].get("initial_lr", settings["lr"])}  # before the schedule's factor
    optimizer = {**model["optimizer"], "init_args": found}
    return {**config, "model": {**config["model"], "init_args": {**model, "optimizer": optimizer}}}


def _measured(one: Evaluation) -> str:
    """Return an evaluation as a table, below a line with its rows and checkpoint."""
    rows = "rows that were not recorded"
    if one.data:
        rows = one.data if one.several else _public(one.data)
    where = f"{_HELD_OUT}, {rows}" if one.held_out else rows
    parts = [
        f"{'Test' if one.stage == 'test' else 'Validation'} on {where}",
        f"{one.rows:,} rows" if one.rows is not None else None,
        one.part,
        f"fingerprint {one.fingerprint}" if one.fingerprint else None,
        f"checkpoint: {one.weights}",
        one.method,
        one.date,
    ]
    head = ("metric", "value", "meaning")
    return ", ".join(escaped(part) for part in parts if part) + ":\n\n" + _table(head, _numbers(one))


def _numbers(one: Evaluation) -> Iterable[tuple[str, str, str]]:
    """Yield the metrics by group, each with its meaning; an interval's ends follow their metric."""
    infos = (*REGISTRY, *one.described)
    names = {name.partition("/")[2]: name for name in one.metrics}
    for members in grouped(names, infos).values():
        for name in members:
            info = find_info(name, infos)
            is_end = info is not None and info.interval and name.endswith(("_low", "_high"))
            meaning = "95 % interval." if is_end else "" if info is None else info.help
            yield names[name], f"{one.metrics[names[name]]:.4g}", meaning


def _read_metrics(path: Path) -> list[Evaluation]:
    try:
        return read_evaluations(path)
    except ValueError as error:
        raise ConfigError(
            f"{path} can't be read ({first_line(error)}): delete it and run `prefopt validate` with the "
            "run's checkpoint to write a new one."
        ) from error


def escaped(text: str) -> str:
    r"""Return ``text`` on one line, escaped for Markdown.

    >>> print(escaped("a|b <c>"))
    a\|b \<c\>
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _yaml(settings: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return text


def _versions() -> Iterable[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _sources(given: Any) -> str:
    """Return the sources in a ``data.train`` setting, with their names if they have any."""
    if isinstance(given, dict) and "path" not in given:
        return ", ".join(f"{name}: {_sources(source)}" for name, source in given.items())
    return ", ".join(map(_public, paths_in(given)))


def _is_hub_data(path: str) -> bool:
    return _HUB_DATA.fullmatch(path) is not None and not Path(path).exists()


def _public(name: str) -> str:
    """Return a hub name unchanged, and only the last component of a local path."""
    return name if _is_hub_data(name) else Path(name).name


def _without_places(value: Any) -> Any:
    """Reduce all local paths in the settings to their last component, since cards are published."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    is_place = isinstance(value, str) and "/" in value and len(value.split()) == 1
    return _public(value) if is_place else value


def _class_name(component: Any) -> str:
    return str(component["class_path"]).rsplit(".", 1)[-1]


def _with_short_class(component: Any) -> dict[str, Any]:
    return {_class_name(component): component.get("init_args") or {}}


def _picked(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: settings[key] for key in keys if settings.get(key) is not None}

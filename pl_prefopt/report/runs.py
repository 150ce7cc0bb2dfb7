"""Reading run folders."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError, DataError, suggest
from pl_prefopt.evaluations import (
    FACTS,
    Evaluation,
    Facts,
    main_evaluation,
    main_metrics,
    read_evaluations,
    read_facts,
)
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics import REGISTRY
from pl_prefopt.report.curves import Curve, read_curves
from pl_prefopt.saved_settings import read_saved

STAGES = {"test": "test", "validate": "validate", "predict": "."}
"""The commands that write predictions, the best one to compare runs by first, and where each writes them."""

_NOT_SETTINGS = ("run_dir", "ckpt_path", "best.dirpath", "last.dirpath", "verbose")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind.

    Attributes:
        folder: where.
        name: the end of the folder's path that tells it from the other runs'.
        settings: the resolved configuration, ``{"data.batch_size": "4"}``.
        evaluations: what was measured, the oldest first.
        curves: metrics over training; empty if the run never trained.
        predictions: the file of each command that wrote predictions. The last validation of ``fit`` counts as
            ``validate``, unless the run's validation numbers are those of a later ``validate``.
        facts: duration, hardware and rows of the training; ``None`` if they were not recorded.
    """

    folder: Path
    name: str
    settings: Mapping[str, str]
    evaluations: Sequence[Evaluation]
    curves: Mapping[str, Curve]
    predictions: Mapping[str, Path]
    facts: Facts | None = None

    @property
    def method(self) -> str:
        """The objective's name."""
        objective = self.settings.get("model.init_args.objective.class_path", "")
        return objective.rsplit(".", 1)[-1]

    @property
    def objective(self) -> Mapping[str, str]:
        """The settings of the objective. Losses and rewards compare only between runs that share all of them.

        A larger β alone makes the margins of one and the same policy larger.
        """
        start = "model.init_args.objective."
        return {key: value for key, value in self.settings.items() if key.startswith(start)}

    @property
    def family(self) -> str:
        """The objective and its parts without numbers such as β: what runs have in common that share axes."""
        return repr(sorted(item for item in self.objective.items() if not _is_number(item[1])))

    @property
    def infos(self) -> tuple[MetricInfo, ...]:
        """What is known of the run's numbers."""
        own = (info for one in self.evaluations for info in one.described)
        return (*REGISTRY, *dict.fromkeys(own))

    @property
    def metrics(self) -> Mapping[str, float]:
        """The numbers that stand for the run, ``{"test/accuracy": 0.8}``: one evaluation's of each stage."""
        return main_metrics(self.evaluations)

    def before_training(self, stage: str) -> Evaluation | None:
        """Return the newest evaluation of the policy before training on the rows of the run's own numbers."""
        main = self.evaluation(stage)
        if main is None or main.step == 0 or main.fingerprint is None:  # rows that were not recorded
            return None
        same = [
            one
            for one in self.evaluations
            if one.step == 0
            and (one.stage, one.fingerprint, one.part, one.method)
            == (main.stage, main.fingerprint, main.part, main.method)
        ]
        return same[-1] if same else None

    def predicted(self, stage: str) -> Evaluation | None:
        """Return the evaluation that the predictions of ``stage`` come from, if it was recorded."""
        path = self.predictions.get(stage)
        command = "" if path is None or stage == "predict" else path.parent.name
        return next((one for one in reversed(self.evaluations) if one.command == command), None)

    def evaluation(self, stage: str) -> Evaluation | None:
        """Return the evaluation that ``metrics`` of ``val`` or ``test`` come from."""
        return main_evaluation(self.evaluations, stage)

    @property
    def before_command(self) -> str:
        """The command that measures the policy before training on the validation rows."""
        return shlex.join(["prefopt", "validate", "-c", str(self.folder / "config.yaml")])

    @property
    def test_command(self) -> str:
        """The command that measures the run for a report."""
        config = self.folder / "config.yaml"
        words = ["prefopt", "test", "-c", str(config)]
        last = self.folder / "checkpoints" / "last.ckpt"
        words += ["--ckpt_path", str(last)] if last.is_file() else []
        tested = [key for key in self.settings if key == "data.test" or key.startswith("data.test.")]
        if all(self.settings[key] == "null" for key in tested):
            held_out = self.settings.get("data.val", "null")
            words += ["--data.test", "ROWS.jsonl" if held_out == "null" else held_out]
        return shlex.join(words)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, in the order given.

    Raises:
        ConfigError: if one is no run's folder, its configuration is damaged, or it comes twice.
        DataError: if one holds another file that cannot be read.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, times in Counter(resolved).items():
        if times > 1:
            raise ConfigError(f"Expected each run once, but {folder} was given {times} times.")
    configs = [find_config(folder) for folder in folders]
    names = _short_names(resolved)
    evaluations = [_read_metrics(folder / "metrics.json") for folder in folders]
    return [
        Run(
            folder=folder,
            name=name,
            settings=_read_settings(config),
            evaluations=measured,
            curves=read_curves(folder),
            predictions=_find_predictions(folder, measured),
            facts=read_facts(folder / FACTS),
        )
        for folder, config, name, measured in zip(folders, configs, names, evaluations, strict=True)
    ]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def common_stage(runs: Sequence[Run]) -> str | None:
    """Return the command whose predictions the most runs have; of several, the best one to compare by."""
    counts = {stage: sum(stage in run.predictions for run in runs) for stage in STAGES}
    best = max(counts, key=lambda stage: counts[stage])
    return best if counts[best] else None


def find_config(folder: Path) -> Path:
    """Return the run's configuration; a folder in which only an evaluation ran has that one's.

    Raises:
        ConfigError: if it is no run's folder.
    """
    for place in (".", *STAGES, "predict"):
        if (folder / place / "config.yaml").is_file():
            return folder / place / "config.yaml"
    if folder.is_dir():
        inside = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        hint = f"; it holds runs, such as {folder / inside[0]}" if inside else ""
        raise ConfigError(f"Expected a run's folder, but {folder} has no config.yaml{hint}.")
    if folder.exists():
        raise ConfigError(f"Expected a run's folder, such as runs/NAME, but {folder} is a file.")
    siblings = [path.name for path in folder.parent.glob("*")] if folder.parent.is_dir() else []
    raise ConfigError(
        f"Expected a run's folder, such as runs/NAME, but there is no folder {folder}"
        f"{suggest(folder.name, siblings) or '.'}"
    )


def _find_predictions(folder: Path, evaluations: Sequence[Evaluation]) -> dict[str, Path]:
    paths = {stage: folder / place / "predictions.jsonl" for stage, place in STAGES.items()}
    found = {stage: path for stage, path in paths.items() if path.is_file()}
    of_fit = folder / "fit" / "predictions.jsonl"
    validated = next((one for one in reversed(evaluations) if one.command == "validate"), None)
    if of_fit.is_file() and (
        "validate" not in found or validated is None or validated is not main_evaluation(evaluations, "val")
    ):
        found["validate"] = of_fit
    return found


def _read_metrics(path: Path) -> list[Evaluation]:
    try:
        return read_evaluations(path)
    except ValueError as error:
        raise DataError(f"expected evaluations in {path}, got: {error}; move the file away") from error


def _read_settings(path: Path) -> dict[str, str]:
    settings = dict(_flat(read_saved(path), ""))
    return {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    """Return the leaves of a configuration with their paths, written as on the command line."""
    if isinstance(value, Mapping) and value:
        items = [(f"{key}.{name}" if key else str(name), part) for name, part in value.items()]
        return [leaf for name, part in items for leaf in _flat(part, name)]
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return [leaf for number, part in enumerate(value) for leaf in _flat(part, f"{key}.{number}")]
    return [(key, "null" if value is None else str(value))]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ from one another."""
    longest = max(len(folder.parts) for folder in folders)
    for length in range(1, longest + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]

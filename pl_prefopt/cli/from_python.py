"""``pl_prefopt.fit``: what ``prefopt fit`` does, from Python."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from lightning.pytorch import LightningDataModule, Trainer

from pl_prefopt import modules
from pl_prefopt.cli.app import PrefOptCLI
from pl_prefopt.cli.class_sources import forget_modules
from pl_prefopt.cli.config_diagnostics import check_command
from pl_prefopt.cli.config_files import names, with_paths
from pl_prefopt.cli.object_settings import changed_fields, settings_of
from pl_prefopt.cli.plugins import forget_plugins
from pl_prefopt.cli.run_folder import choose_run_folder, refuse_second_run
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.sources import RowsInMemory, Source
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.files import atomic_write
from pl_prefopt.modules import PreferenceModule
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import InitialPolicy, Reference
from pl_prefopt.saved_settings import FILE_NAME


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its files, as ``prefopt fit`` writes them.
        module: the trained module, with the weights of the last step.
        trainer: the trainer that trained it.
    """

    folder: Path
    module: PreferenceModule
    trainer: Trainer

    @property
    def metrics(self) -> dict[str, float]:
        """The values of the newest evaluation after training, by name; empty without one."""
        found = [one for one in read_evaluations(self.folder / "metrics.json") if one.step != 0]
        return dict(found[-1].metrics) if found else {}

    @property
    def checkpoint(self) -> Path | None:
        """The best checkpoint, or the last one if there is no best; ``None`` if nothing was saved."""
        paths = (self.folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        return next((path for path in paths if path.exists()), None)


def fit(
    model: str | PolicySpec,
    data: Any,
    objective: str | Objective | Mapping[str, Any] = "dpo",
    *,
    val: Any = None,
    references: Sequence[Reference] | None = None,
    lr: float | None = None,
    run_dir: str | Path | None = None,
    configs: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Train a policy as ``prefopt fit`` does, into the same run folder.

    The settings are those of the command: its defaults, then ``configs``, then the arguments, then
    ``settings``.

    Args:
        model: a model's folder or hub name, or a ``PolicySpec``.
        data: the training rows: a path or hub name, a ``Source``, or rows in memory, which are saved in the
            run folder: a list of dictionaries, a pandas or polars frame, or a ``datasets.Dataset``.
        objective: the name of a configuration, such as ``"dpo"`` for ``methods/dpo``, an objective, or its
            ``class_path`` and ``init_args``.
        val: the validation rows, as ``data``; by default a tenth of ``data`` is held out.
        references: the references; by default those of the method's configuration, or the initial policy for
            an objective that needs one.
        lr: the learning rate.
        run_dir: the run folder; by default a new one under ``runs/``.
        configs: configurations, as for ``-c``, such as ``["hardware/lora_1gpu"]``.
        settings: other settings by name, as on the command line: ``{"trainer.max_steps": 100}``; ``None``
            is its ``null``.

    Returns:
        The run.

    Raises:
        PrefOptError: where the command would end with a sentence.
    """
    of_objective, method = _objective_settings(objective)
    given = {**of_objective, **_model_settings(model)}
    if references is not None:
        given["references.members"] = settings_of(list(references))
    if lr is not None:
        given["model.init_args.optimizer.init_args.lr"] = lr
    others = dict(settings or {})
    run_dir = others.pop("run_dir", run_dir)
    if run_dir is not None:
        given["run_dir"] = str(run_dir)
    with _rows_in_files({"train": data, "val": val}, given, method, others.get("ckpt_path")):
        words = [word for name in configs for word in ("-c", name)]
        if isinstance(objective, str):
            words += ["-c", _method(objective)]
        return _run(words, given | others)


def _run(words: Sequence[str], settings: Mapping[str, Any]) -> Run:
    """Run the command with the arguments ``words`` and the settings."""
    options = [f"--{key}={_as_text(value)}" for key, value in settings.items()]
    forget_modules()
    forget_plugins()
    arguments = with_paths(["fit", *words, *options])
    check_command("fit", arguments[1:])
    command = PrefOptCLI(arguments)
    return Run(command.run_folder, command.model, command.trainer)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(settings_of(value), ensure_ascii=False)


def _method(name: str) -> str:
    """Return the configuration of a method named in short."""
    return f"methods/{name}" if f"methods/{name}" in names() else name


def _model_settings(model: str | PolicySpec) -> dict[str, Any]:
    if isinstance(model, PolicySpec):
        return {"model.init_args.policy": changed_fields(model)}
    if not isinstance(model, str | Path):
        raise ConfigError(
            "expected `model` to be a model's folder or hub name, or a PolicySpec, got "
            f"{type(model).__name__}."
        )
    return {"model.init_args.policy.name": str(model)}


def _objective_settings(objective: str | Objective | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the settings of the model's class, the objective and its references, and the method's name."""
    if isinstance(objective, str):
        return {}, Path(objective).stem
    if isinstance(objective, Mapping):
        return {"model.init_args.objective": dict(objective)}, str(objective["class_path"]).rsplit(".", 1)[-1]
    kind = _module_for(objective)
    settings: dict[str, Any] = {
        "model": f"pl_prefopt.modules.{kind.__name__}",
        "model.init_args.objective": settings_of(objective),
    }
    fewest = objective.needs.min_references
    if fewest < 2:
        settings["references.members"] = settings_of([InitialPolicy()] * fewest)
    return settings, type(objective).__name__


def _module_for(objective: Objective) -> type[PreferenceModule]:
    """Return the module of the objective's family."""
    for kind in (getattr(modules, name) for name in modules.__all__):
        if inspect.isclass(kind) and issubclass(kind, PreferenceModule) and kind is not PreferenceModule:
            taken = get_type_hints(kind.__init__)["objective"]
            if isinstance(objective, taken):
                return kind
    return PreferenceModule


@contextmanager
def _rows_in_files(
    splits: Mapping[str, Any], given: dict[str, Any], method: str, ckpt_path: str | None
) -> Iterator[None]:
    """Add the rows to the settings; those in memory are written to the run folder, which a run reads.

    If the run does not begin, they are removed.
    """
    written: list[Path] = []
    for split, rows in splits.items():
        if rows is None:
            continue
        if isinstance(rows, LightningDataModule):
            raise ConfigError(
                "expected rows or their path, got a data module: pass its rows, and its settings as "
                'settings={"data.batch_size": 8}, or use `lightning.Trainer` directly.'
            )
        source = Source.of(rows)
        if not isinstance(source, RowsInMemory):
            given[f"data.{split}"] = str(rows) if isinstance(rows, str | Path) else changed_fields(source)
            continue
        if not written:
            folder = choose_run_folder(asked=given.get("run_dir"), ckpt_path=ckpt_path, method=method)
            refuse_second_run(folder, ckpt_path)
            given["run_dir"] = str(folder)
        written.append(_write(folder / f"{split}.jsonl", source))
        given[f"data.{split}"] = str(written[-1])
    try:
        yield
    finally:
        if written and not (folder / FILE_NAME).exists():
            for path in written:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                folder.rmdir()


def _write(path: Path, source: RowsInMemory) -> Path:
    try:
        text = "".join(map(_line, source.records()))
    except TypeError as error:
        raise DataError(f"expected rows of text, numbers, lists and dictionaries: {error}.") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogatepass")  # a bad row, as in a file
    return path


def _line(record: Record) -> str:
    if record.problem:
        raise DataError(f"{record.origin}: {record.problem}; fix or remove the row.")
    return json.dumps(record.fields, ensure_ascii=False) + "\n"

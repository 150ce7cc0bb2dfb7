"""`prefopt sweep`: searches settings, with each run of `prefopt fit` in a process of its own."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pl_prefopt.cli.config_diagnostics import check_command
from pl_prefopt.cli.config_files import find, with_paths
from pl_prefopt.cli.given_settings import at, given_settings, merged
from pl_prefopt.cli.plain_parser import PlainParser, made_from
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.errors import ConfigError, DataError, RunError, first_line
from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.files import atomic_write, discard
from pl_prefopt.metric_info import current_name
from pl_prefopt.processes import last_line, run_watched
from pl_prefopt.report import Table, plain_page
from pl_prefopt.report.curves import read_curves
from pl_prefopt.sweeps import STORAGE, Pruned, Report, Sweep, TrialResult, search
from pl_prefopt.yaml_files import read_yaml

PAGE, _STATE, _FIT = "sweep.html", "sweep.json", "fit.yaml"
_MAY_CHANGE = ("trials", "checkpoints")
"""Settings of which a change leaves the finished trials as they are."""
_BUSY = "Another process is running the sweep in {}: wait until it ends, or stop it."
_WORDS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
_SHOWN = 3


def sweep(arguments: list[str]) -> None:
    """Run ``prefopt sweep`` with the given command-line arguments."""
    parser = PlainParser(
        prog="prefopt sweep", description="Search settings of `prefopt fit`; resumes where it stopped."
    )
    parser.add_argument("-c", "--config", type=str, required=True, help="The sweep: a YAML file.")
    config = find(parser.parse_args(arguments).config)
    raw = read_yaml(Path(config))
    settings = read_sweep(config, raw)
    out = Path(settings.out)
    _check(config, settings)
    with alone_in(out, busy=_BUSY.format(out)):
        _accept(out, raw)
        _write_yaml(out / _FIT, settings.settings)
        found = search(settings, _Trials(settings), lambda results: _ended(settings, results))
        _write(settings, found)
    note, table = _tables(settings, found)
    print("\n".join(table.lines()))
    print(f"{note}\nWrote {out / PAGE}")
    print(_next_steps(settings, found))


def read_sweep(config: str, raw: Any) -> Sweep:
    """Return the settings in a file.

    Args:
        config: the file's name, for messages.
        raw: its content.

    Raises:
        ConfigError: if they are wrong.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{config}: expected the settings of a sweep, got {type(raw).__name__}.")
    try:
        made = made_from(Sweep, "sweep", raw)
        list(made.corners())
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    return made


def _check(config: str, settings: Sweep) -> None:
    """Check each end of a range and each choice as ``prefopt fit`` checks its settings.

    Raises:
        ConfigError: for the first mistake.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _FIT
        _write_yaml(file, settings.settings)
        for values in settings.corners():
            words = with_paths(_command(settings, values, settings.seeds[0], Path(folder) / "run", file))
            try:
                check_command("fit", words[1:])
                if at(merged(list(given_settings(words[1:]))), ("trainer", "logger")) is False:
                    raise ConfigError(f"{file}: a sweep reads metrics.csv: remove `trainer.logger: false`.")
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(file), f"{config}, settings")) from error


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as draft:
        draft.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _accept(out: Path, raw: Mapping[str, Any]) -> None:
    """Check that the settings are those of the trials in the folder, and keep them.

    Raises:
        ConfigError: if they differ.
        DataError: if the file that keeps them is damaged.
    """
    path = out / _STATE
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(
            f"expected the settings of a sweep in {path}, got: {first_line(error)}; restore the file, or set "
            "`out` to another folder."
        ) from error
    then, now = (_with_current_name(one) for one in (kept, raw))
    changed = [name for name in sorted({*then, *now} - set(_MAY_CHANGE)) if then.get(name) != now.get(name)]
    if kept and changed and any(out.glob("trial-*/seed-*/config.yaml")):
        name = changed[0]
        raise ConfigError(
            f"{out} has trials with another `{name}` ({kept.get(name)}, and now {raw.get(name)}): set `out` "
            "to another folder."
        )
    if changed:
        discard(out / STORAGE)  # of a trial that was refused
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def _with_current_name(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    metric = raw.get("metric")
    return {**raw, "metric": current_name(metric)} if isinstance(metric, str) else raw


def _command(
    settings: Sweep, values: Mapping[str, Any], seed: int, folder: Path, file: Path | None = None
) -> list[str]:
    """Return the arguments of ``prefopt`` that train one run; ``file`` has the further settings."""
    own_file = str(file or Path(settings.out) / _FIT)
    configs = [word for one in (*settings.config, own_file) for word in ("-c", one)]
    options = [f"--{name}={_text(value)}" for name, value in values.items()]
    own = {
        "best.monitor": settings.metric,
        "best.mode": settings.mode,
        "seed_everything": seed,
        "run_dir": str(folder),
        "ckpt_path": "last",
    }
    return ["fit", *configs, *options, *(f"--{name}={value}" for name, value in own.items())]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Trials:
    """Trains the runs of trials."""

    def __init__(self, settings: Sweep) -> None:
        self.settings = settings

    def __call__(self, number: int, settings: Mapping[str, Any], seed: int, report: Report) -> float:
        """Train a run in a process and return its best validation."""
        folder = self.settings.folder(number, seed)
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        print(f"trial {number}, seed {seed}: {shown} ... ", end="", flush=True)
        log = folder.with_name(f"{folder.name}.log")
        words = _command(self.settings, settings, seed, folder)
        status = run_watched(
            [sys.executable, "-m", "pl_prefopt", *words], log, lambda: report(self._values(folder))
        )
        values = self._values(folder)
        if status is None or (status == 0 and report(values)):
            print("pruned", flush=True)
            raise Pruned
        if status != 0:
            print("failed", flush=True)
            raise self._failure(status, log)
        if not values:
            raise RunError(f"its {folder / 'metrics.csv'} has no {self.settings.metric}")
        best = max(values) if self.settings.mode == "max" else min(values)
        print(f"{self.settings.metric} {best:.6g}", flush=True)
        return best

    def _values(self, folder: Path) -> list[float]:
        """Return the metric's values so far, without that of the policy before training.

        Its step doesn't tell it apart: Lightning logs a validation after the first step at step 0, too.
        """
        metric = self.settings.metric
        found = read_evaluations(folder / "metrics.json")  # a validation is written to it last
        curve = read_curves(folder).get(metric)
        if curve is None or not found:
            return []
        untrained = any(one.step == 0 and one.command == "fit" and metric in one.metrics for one in found)
        return [float(value) for value in curve.values[int(untrained) :]]

    def _failure(self, status: int, log: Path) -> RunError | ConfigError:
        """Return the error of a run: one in its settings ends the sweep, others only the trial."""
        told = last_line(log).removeprefix("prefopt: ")
        if status == ConfigError.exit_status:
            return ConfigError(f"a trial was refused: {told} Its log is {log}.")
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return RunError(f"`prefopt fit` ended with {how}: {told} Its log is {log}.")


def _ended(settings: Sweep, found: Sequence[TrialResult]) -> None:
    """Write the page, and remove checkpoints that aren't wanted."""
    _write(settings, found)
    for one in found[1:] if settings.checkpoints == "best" else ():
        for seed in settings.seeds:
            shutil.rmtree(settings.folder(one.number, seed) / "checkpoints", ignore_errors=True)


def _write(settings: Sweep, found: Sequence[TrialResult]) -> None:
    note, table = _tables(settings, found)
    with atomic_write(Path(settings.out) / PAGE) as draft:
        page = plain_page(
            f"Sweep: {settings.out}", [table], [note, *_next_steps(settings, found).splitlines()]
        )
        draft.write_text(page, encoding="utf-8")


def _tables(settings: Sweep, found: Sequence[TrialResult]) -> tuple[str, Table]:
    """Return a sentence with the counts, and the table of trials."""
    counts = Counter(_WORDS[one.state] for one in found)
    told = ", ".join(f"{counts[word]} {word}" for word in _WORDS.values() if counts[word])
    several = len(settings.seeds) > 1
    spread = ("standard deviation",) if several else ()
    table = Table("Trials", ("trial", "state", settings.metric, *spread, *settings.search, "error"))
    for one in found:
        table.add(
            str(one.number),
            _WORDS[one.state],
            _shown(one.value),
            *((_shown(one.deviation),) if several else ()),
            *(_shown(one.settings.get(name)) for name in settings.search),
            one.error,
        )
    return f"{len(found)} of {settings.count} trials have ended: {told or 'none'}.", table


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _next_steps(settings: Sweep, found: Sequence[TrialResult]) -> str:
    """Return the commands that continue from the best trials."""
    best = [one for one in found if one.state == "complete"][:_SHOWN]
    if not best:
        return "No trial is complete."
    folders = [str(settings.folder(one.number, seed)) for one in best for seed in settings.seeds]
    config = str(settings.folder(best[0].number, settings.seeds[0]) / "config.yaml")
    return (
        f"Compare the best: {shlex.join(['prefopt', 'report', *folders])}\n"
        f"Repeat the best with another seed: {shlex.join(['prefopt', 'fit', '-c', config])} "
        "--seed_everything SEED --run_dir FOLDER"
    )
